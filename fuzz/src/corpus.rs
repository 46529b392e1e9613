//! The inputs of the fuzz targets, between `fuzz/corpus` (a file for each target, an input a line,
//! in hexadecimal digits) and the folders of files that libFuzzer reads and writes.
//!
//! ```text
//! FUZZ_CORPUS=names                  the names of all targets
//! FUZZ_CORPUS='words TARGET'         its words, as a dictionary of libFuzzer
//! FUZZ_CORPUS='unpack TARGET FOLDER' writes its seeds, and what is kept in fuzz/corpus, as files
//! FUZZ_CORPUS='keep TARGET FOLDER'   prints the files of a folder as the lines of fuzz/corpus, the short ones
//! ```

use std::collections::BTreeSet;
use std::path::Path;
use std::{env, fs};
use zfs_backup::fuzzing::{TARGETS, Target};

/// Longer inputs are not kept: they would fill the repository, and the seeds are made anew each
/// time.
const KEPT_BYTES_MAX: usize = 600;
/// At most so many inputs of one target are kept.
const KEPT_INPUTS_MAX: usize = 150;

/// Does what `FUZZ_CORPUS` says and ends the process; without it, nothing.
pub(crate) fn serve() {
    let Ok(command) = env::var("FUZZ_CORPUS") else { return };
    match command.split_whitespace().collect::<Vec<_>>()[..] {
        ["names"] => TARGETS.iter().for_each(|target| println!("{}", target.name)),
        ["words", name] => words(find(name)),
        ["unpack", name, folder] => unpack(find(name), Path::new(folder)),
        ["keep", _, folder] => keep(Path::new(folder)),
        _ => panic!("FUZZ_CORPUS is names, words TARGET, unpack TARGET FOLDER or keep TARGET FOLDER"),
    }
    std::process::exit(0);
}

fn find(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("there is no target {name}"))
}

fn words(target: &Target) {
    for word in target.words {
        let escaped: String = word.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
        println!("\"{escaped}\"");
    }
}

fn unpack(target: &Target, folder: &Path) {
    fs::create_dir_all(folder).expect("the folder can be made");
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let kept = fs::read_to_string(kept).unwrap_or_default();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).unwrap_or("?"), 16).expect("two digits a byte");
    let kept = kept.lines().map(|line| line.as_bytes().as_chunks::<2>().0.iter().map(byte).collect());
    for (number, input) in (target.seeds)().into_iter().chain(kept).enumerate() {
        fs::write(folder.join(format!("kept-{number:04}")), input).expect("a file can be written");
    }
}

fn keep(folder: &Path) {
    let files = fs::read_dir(folder).expect("the folder can be read").flatten();
    let inputs: BTreeSet<Vec<u8>> = files.filter_map(|file| fs::read(file.path()).ok()).collect();
    let mut inputs: Vec<Vec<u8>> = inputs.into_iter().filter(|input| input.len() <= KEPT_BYTES_MAX).collect();
    // The omitted inputs are spread evenly.
    let step = inputs.len().div_ceil(KEPT_INPUTS_MAX).max(1);
    inputs = inputs.into_iter().step_by(step).collect();
    for input in inputs {
        println!("{}", input.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    }
}
