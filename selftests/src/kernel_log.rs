// SPDX-License-Identifier: GPL-2.0
//! What the kernel says. Complaints fail the test they come with.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::LazyLock;

use nix::libc::O_NONBLOCK;
use regex_lite::Regex;

const KMSG: &str = "/dev/kmsg";

/// What no test may make the kernel say; the file says how to read it.
const COMPLAINTS: &str = include_str!("complaints.txt");

static PATTERNS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let regex = |line| Regex::new(line).expect("a regular expression");
    patterns(COMPLAINTS).into_iter().map(|pattern| regex(pattern.regex)).collect()
});

/// A line of the list, with the lines after it that it must match.
#[derive(Debug, PartialEq, Eq)]
struct Pattern<'a> {
    regex: &'a str,
    examples: Vec<&'a str>,
}

fn patterns(list: &str) -> Vec<Pattern<'_>> {
    let mut patterns: Vec<Pattern> = Vec::new();
    for line in list.lines() {
        match line.strip_prefix('\t') {
            Some(example) => patterns.last_mut().expect("a pattern").examples.push(example),
            // Here a crash is no more than another complaint.
            None if line.is_empty() || line.starts_with('#') || KINDS.contains(&line) => {}
            None => patterns.push(Pattern { regex: line, examples: Vec::new() }),
        }
    }
    patterns
}

const KINDS: [&str; 2] = ["crash:", "complaint:"];

/// The kernel's log from when it was opened.
#[derive(Debug)]
pub struct KernelLog(File);

impl KernelLog {
    /// Opens the log; `None` where one may not read it.
    pub fn open() -> Option<Self> {
        let mut file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(KMSG).ok()?;
        file.seek(SeekFrom::End(0)).ok()?;
        Some(Self(file))
    }

    /// The kernel's lines since the last call.
    pub fn lines(&mut self) -> Vec<String> {
        // A record is at most 8 KB.
        let mut record = [0; 8192];
        let mut lines = Vec::new();
        loop {
            match self.0.read(&mut record) {
                Ok(len) => lines.extend(line(&String::from_utf8_lossy(&record[..len]))),
                // The oldest records were overwritten; reading goes on behind them.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(_) => return lines,
            }
        }
    }

    /// Those of them that are complaints.
    pub fn complaints(&mut self) -> Vec<String> {
        let mut lines = self.lines();
        lines.retain(|line| is_complaint(line));
        lines
    }
}

/// The text of a record if it is the kernel's.
fn line(record: &str) -> Option<String> {
    let (head, text) = record.split_once(';')?;
    let facility = head.split(',').next()?.parse::<u32>().ok()? >> 3;
    let line = text.lines().next()?;
    (facility == 0).then(|| line.to_owned())
}

fn is_complaint(line: &str) -> bool {
    PATTERNS.iter().any(|pattern| pattern.is_match(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(record: &str) -> Option<String> {
        line(record).filter(|line| is_complaint(line))
    }

    #[test]
    fn lines_of_the_kernel_only() {
        assert_eq!(line("6,101,6,-;test_hmm_rs: loaded\n KEY=v\n").unwrap(), "test_hmm_rs: loaded");
        assert_eq!(line("12,101,6,-;daemon: low\n"), None);
    }

    #[test]
    fn finds_complaints_of_the_kernel_only() {
        let warning = "4,100,5,-;WARNING: CPU: 1 PID: 2 at mm/x.c:3\n KEY=v\n";
        assert_eq!(complaint(warning).unwrap(), "WARNING: CPU: 1 PID: 2 at mm/x.c:3");
        assert_eq!(complaint("6,101,6,-;test_hmm_rs: loaded\n"), None);
        assert_eq!(complaint("12,101,6,-;daemon: WARNING: low\n"), None);
        assert_eq!(complaint("garbage"), None);
    }

    #[test]
    fn each_pattern_matches_its_examples() {
        for pattern in patterns(COMPLAINTS) {
            assert!(!pattern.examples.is_empty(), "{} has no example", pattern.regex);
            let regex = Regex::new(pattern.regex).unwrap();
            for example in pattern.examples {
                assert!(regex.is_match(example), "{} does not match: {example}", pattern.regex);
                assert_eq!(complaint(&format!("4,1,1,-;{example}\n")).unwrap(), example);
            }
        }
    }

    #[test]
    fn what_is_no_complaint() {
        for line in [
            "Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on",
            "systemd[1]: WARNING: low on space",
            "DMA-API: preallocated 65536 debug entries",
            "rcu: Adjusting geometry for rcu_fanout_leaf=16, nr_cpu_ids=2",
            "Memory failure: 0x100a01: recovery action for free buddy page: Recovered",
            "kmemleak: Automatic memory scanning thread started",
            "kfence: initialized - using 2097152 bytes for 255 objects",
        ] {
            assert_eq!(complaint(&format!("4,1,1,-;{line}\n")), None);
        }
    }

    #[test]
    fn comments_and_kinds_are_no_patterns() {
        let list = "# about\n\ncrash:\nOops\n\tOops: 1\n\tOops: 2\ncomplaint:\nBUG\n";
        let expected = [
            Pattern { regex: "Oops", examples: vec!["Oops: 1", "Oops: 2"] },
            Pattern { regex: "BUG", examples: vec![] },
        ];
        assert_eq!(patterns(list), expected);
    }
}
