//! Just enough of the send stream to cut it between records and to compare streams record by
//! record.

/// A record's place in a stream.
pub(crate) struct Record {
    pub(crate) kind: u32,
    pub(crate) object: u64,
    pub(crate) offset: u64,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

pub(crate) const WRITE: u32 = 3;
pub(crate) const END: u32 = 5;

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn payload_bytes(header: &[u8]) -> usize {
    let padded = |bytes: u32| bytes.next_multiple_of(8) as usize;
    match word(header, 0) {
        0 => word(header, 4) as usize,
        1 if word(header, 36) != 0 => word(header, 36) as usize,
        1 => padded(word(header, 28)),
        WRITE if header[50] != 0 => usize::try_from(number(header, 96)).unwrap(),
        WRITE => usize::try_from(number(header, 32)).unwrap(),
        7 if number(header, 40) != 0 => usize::try_from(number(header, 40)).unwrap(),
        7 => usize::try_from(number(header, 16)).unwrap(),
        8 => padded(word(header, 52)),
        2 | 4 | 5 | 9 | 10 => 0,
        other => panic!("record of type {other}"),
    }
}

/// All records of a whole stream.
pub(crate) fn records(stream: &[u8]) -> Vec<Record> {
    let (mut found, mut start) = (Vec::new(), 0);
    while start < stream.len() {
        let header = &stream[start..start + 312];
        let end = start + 312 + payload_bytes(header);
        let offset = number(header, if word(header, 0) == WRITE { 24 } else { 16 });
        found.push(Record {
            kind: word(header, 0),
            object: number(header, 8),
            offset,
            start,
            end,
        });
        start = end;
    }
    assert_eq!(found.last().map(|record| record.kind), Some(END));
    found
}

/// A record without its running checksum, nor END's, which depend on where the stream began.
pub(crate) fn content(stream: &[u8], record: &Record) -> Vec<u8> {
    let mut bytes = stream[record.start..record.end].to_vec();
    bytes[280..312].fill(0);
    if record.kind == END {
        bytes[8..40].fill(0);
    }
    bytes
}
