//! The least that any program of this kind can do: bytes out of a pipe, the arithmetic page by page
//! while a page is in the cache, bytes into a socket; and the same the other way. One thread, no
//! part waits for another, nothing is checked. What it costs is what the machine asks; what a
//! program costs beyond is its own.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use zfs_backup::stream::age_file::PAGE_BYTES;
use zfs_backup::stream::fletcher::{ByteOrder, Fletcher4};
use zfs_backup::zfs::enlarge_pipe;

const PART_BYTES: usize = 8 << 20;
const ANSWER_BYTES: usize = 64 << 10;

struct Arithmetic {
    key: LessSafeKey,
    blake3: blake3::Hasher,
    fletcher: Fletcher4,
}

impl Arithmetic {
    fn new() -> Self {
        let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).unwrap());
        Self {
            key,
            blake3: blake3::Hasher::new(),
            fletcher: Fletcher4::default(),
        }
    }

    fn seal(&mut self, part: &mut [u8]) {
        let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        for page in part.chunks_mut(PAGE_BYTES) {
            self.fletcher.absorb(page.as_chunks().0, ByteOrder::Little);
            self.encrypt(page);
            crc.update(page);
            self.blake3.update(page);
        }
        black_box(crc.finalize());
    }

    /// To open a page costs what sealing it does.
    fn open(&mut self, part: &mut [u8]) {
        for page in part.chunks_mut(PAGE_BYTES) {
            self.blake3.update(page);
            self.encrypt(page);
            self.fletcher.absorb(page.as_chunks().0, ByteOrder::Little);
        }
    }

    fn encrypt(&self, page: &mut [u8]) {
        let nonce = Nonce::assume_unique_for_key([1; 12]);
        _ = black_box(
            self.key
                .seal_in_place_separate_tag(nonce, Aad::empty(), page)
                .unwrap(),
        );
    }

    fn end(self) {
        black_box((self.fletcher, self.blake3.finalize()));
    }
}

/// Standard input goes to a sink, each part as an object.
pub(crate) fn upload(port: u16) {
    let mut input = File::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    enlarge_pipe(&input);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    let (mut part, mut arithmetic) = (vec![0; PART_BYTES], Arithmetic::new());
    for number in 0.. {
        let mut filled = 0;
        while filled < part.len() {
            match input.read(&mut part[filled..]).unwrap() {
                0 => break,
                read => filled += read,
            }
        }
        let part = &mut part[..filled];
        if part.is_empty() {
            break;
        }
        arithmetic.seal(part);
        let head = format!(
            "PUT /bench/floor/{number} HTTP/1.1\r\nHost: sink\r\nContent-Length: {filled}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(part).unwrap();
        assert!(answer_bytes(&mut answers).is_some(), "a part was refused");
    }
    arithmetic.end();
}

/// Writes the objects that [`upload`] put to standard output.
pub(crate) fn restore(port: u16) {
    // The standard handle would search for the ends of lines; a copy of the file does not.
    let mut output = File::from(std::io::stdout().as_fd().try_clone_to_owned().unwrap());
    enlarge_pipe(&output);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut answers = BufReader::with_capacity(ANSWER_BYTES, stream.try_clone().unwrap());
    let (mut part, mut arithmetic) = (vec![0; PART_BYTES], Arithmetic::new());
    for number in 0.. {
        stream
            .write_all(
                format!("GET /bench/floor/{number} HTTP/1.1\r\nHost: sink\r\n\r\n").as_bytes(),
            )
            .unwrap();
        let Some(bytes) = answer_bytes(&mut answers) else {
            break;
        };
        let part = &mut part[..bytes];
        answers.read_exact(part).unwrap();
        arithmetic.open(part);
        output.write_all(part).unwrap();
    }
    arithmetic.end();
}

/// The length of a good answer's body.
fn answer_bytes(answers: &mut impl BufRead) -> Option<usize> {
    let mut lines = answers.lines().map(Result::unwrap);
    let is_good = lines.next().unwrap().contains(" 20");
    let mut bytes = 0;
    for line in lines.take_while(|line| !line.is_empty()) {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            bytes = value.trim().parse().unwrap();
        }
    }
    is_good.then_some(bytes)
}
