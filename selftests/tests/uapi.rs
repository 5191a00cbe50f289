// SPDX-License-Identifier: GPL-2.0
//! Compares the crate's definitions with the C header's, as its compiler sees them.
//! The header is that of the environment's `HMM_UAPI_HEADER`, or the patched kernel's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::mem::offset_of;
use std::path::PathBuf;
use std::process::Command;

use hmm_selftests::uapi::{self, Cmd, MemoryType, prot};

const HEADER: &str = "../build/linux/lib/test_hmm_uapi.h";
const PREFIX: &str = "HMM_DMIRROR_";

/// Each constant of the header, without its prefix, as the crate has it.
fn constants() -> BTreeMap<&'static str, u64> {
    BTreeMap::from([
        ("READ", uapi::READ.into()),
        ("WRITE", uapi::WRITE.into()),
        ("MIGRATE_TO_DEV", uapi::MIGRATE_TO_DEV.into()),
        ("MIGRATE_TO_SYS", uapi::MIGRATE_TO_SYS.into()),
        ("SNAPSHOT", uapi::SNAPSHOT.into()),
        ("EXCLUSIVE", uapi::EXCLUSIVE.into()),
        ("CHECK_EXCLUSIVE", uapi::CHECK_EXCLUSIVE.into()),
        ("RELEASE", uapi::RELEASE.into()),
        ("FLAGS", uapi::FLAGS.into()),
        ("READ_UNLOCKED", uapi::READ_UNLOCKED.into()),
        ("GET_MEM_DEV_TYPE", uapi::GET_MEM_DEV_TYPE.into()),
        ("FLAG_FAIL_ALLOC", uapi::FLAG_FAIL_ALLOC),
        ("PROT_ERROR", prot::ERROR.into()),
        ("PROT_NONE", prot::NONE.into()),
        ("PROT_READ", prot::READ.into()),
        ("PROT_WRITE", prot::WRITE.into()),
        ("PROT_PMD", prot::PMD.into()),
        ("PROT_PUD", prot::PUD.into()),
        ("PROT_ZERO", prot::ZERO.into()),
        ("PROT_DEV_PRIVATE_LOCAL", prot::DEV_PRIVATE_LOCAL.into()),
        ("PROT_DEV_PRIVATE_REMOTE", prot::DEV_PRIVATE_REMOTE.into()),
        ("PROT_DEV_COHERENT_LOCAL", prot::DEV_COHERENT_LOCAL.into()),
        ("PROT_DEV_COHERENT_REMOTE", prot::DEV_COHERENT_REMOTE.into()),
        ("PROT_DEV_GENERIC_LOCAL", prot::DEV_GENERIC_LOCAL.into()),
        ("PROT_DEV_GENERIC_REMOTE", prot::DEV_GENERIC_REMOTE.into()),
        ("MEMORY_DEVICE_PRIVATE", MemoryType::Private as u64),
        ("MEMORY_DEVICE_COHERENT", MemoryType::Coherent as u64),
        ("MEMORY_DEVICE_GENERIC", MemoryType::Generic as u64),
    ])
}

/// Size and offsets of the structure, in bytes.
fn layout() -> BTreeMap<&'static str, u64> {
    BTreeMap::from([
        ("sizeof(struct hmm_dmirror_cmd)", size_of::<Cmd>() as u64),
        ("offsetof(struct hmm_dmirror_cmd, addr)", offset_of!(Cmd, addr) as u64),
        ("offsetof(struct hmm_dmirror_cmd, ptr)", offset_of!(Cmd, ptr) as u64),
        ("offsetof(struct hmm_dmirror_cmd, npages)", offset_of!(Cmd, npages) as u64),
        ("offsetof(struct hmm_dmirror_cmd, cpages)", offset_of!(Cmd, cpages) as u64),
        ("offsetof(struct hmm_dmirror_cmd, faults)", offset_of!(Cmd, faults) as u64),
    ])
}

fn header() -> PathBuf {
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(HEADER);
    let path = std::env::var_os("HMM_UAPI_HEADER").map_or(default, PathBuf::from);
    path.canonicalize().unwrap_or_else(|error| {
        panic!("{}: {error}; name the header in HMM_UAPI_HEADER", path.display())
    })
}

/// Values of C expressions with the header included.
fn evaluate(expressions: &[String]) -> Vec<u64> {
    let mut source = String::from("#include <stddef.h>\n#include <stdio.h>\n");
    writeln!(source, "#include \"{}\"\nint main(void)\n{{", header().display()).unwrap();
    for expression in expressions {
        writeln!(source, "printf(\"%llu\\n\", (unsigned long long)({expression}));").unwrap();
    }
    source.push_str("}\n");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (file, program) = (folder.join("uapi.c"), folder.join("uapi"));
    fs::write(&file, source).unwrap();
    let compiled =
        Command::new("cc").args(["-Wall", "-Werror", "-o"]).args([&program, &file]).status();
    assert!(compiled.expect("a C compiler, cc").success());
    let output = Command::new(program).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
fn values_and_layout_are_the_headers() {
    let constants = constants().into_iter().map(|(name, value)| (format!("{PREFIX}{name}"), value));
    let layout = layout().into_iter().map(|(expression, value)| (expression.to_owned(), value));
    let ours: Vec<_> = constants.chain(layout).collect();
    let expressions: Vec<_> = ours.iter().map(|(expression, _)| expression.clone()).collect();
    let theirs: Vec<_> = expressions.iter().cloned().zip(evaluate(&expressions)).collect();
    assert_eq!(ours, theirs);
}

#[test]
fn the_crate_has_all_constants_of_the_header() {
    let text = fs::read_to_string(header()).unwrap();
    // Comments also name groups of constants, with a `*`, and shortened ones.
    let code = text.split("/*").map(|part| part.split_once("*/").map_or(part, |(_, code)| code));
    let code: String = code.collect();
    let words = code.split(|c: char| c != '_' && !c.is_ascii_alphanumeric());
    let theirs: BTreeSet<_> = words.filter_map(|word| word.strip_prefix(PREFIX)).collect();
    let ours: BTreeSet<_> = constants().into_keys().collect();
    assert_eq!(ours, theirs);
}
