// SPDX-License-Identifier: GPL-2.0
//! The drivers' device nodes, and typed operations on them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::pages::{PAGE_SIZE, Pages};
use crate::uapi::{self, Cmd, MemoryType};

const NODE_PREFIX: &str = "hmm_dmirror";
const MODULES: &str = "/sys/module";

/// What a command counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Pages copied or migrated.
    pub cpages: u64,
    /// Device page faults.
    pub faults: u64,
}

/// What a command counted, and the data it copied from the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// Contents of the pages.
    pub data: Vec<u8>,
    /// Pages copied or migrated.
    pub cpages: u64,
    /// Device page faults.
    pub faults: u64,
}

/// An open device node. It mirrors the address space of the process that opened it.
///
/// Commands write to the caller's memory at addresses, as `/proc/self/mem` does:
/// give them pages of a [`Mapping`](crate::memory::Mapping), or none that exist.
#[derive(Debug)]
pub struct Device {
    file: File,
}

impl Device {
    /// Opens a node.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: OpenOptions::new().read(true).write(true).open(path)? })
    }

    /// Issues any command once; `EINTR` is returned, too.
    pub fn raw(&self, request: u32, cmd: &mut Cmd) -> Result<(), Errno> {
        uapi::command(self.as_fd(), request, cmd)
    }

    /// Issues any command with any argument, such as a bad pointer to the [`Cmd`].
    pub fn raw_argument(&self, request: u32, argument: usize) -> Result<(), Errno> {
        uapi::issue(self.as_fd(), request, argument)
    }

    fn command(&self, request: u32, pages: Pages, ptr: usize) -> Result<Counts, Errno> {
        loop {
            let mut cmd = Cmd {
                addr: pages.addr as u64,
                ptr: ptr as u64,
                npages: pages.count as u64,
                ..Cmd::default()
            };
            match self.raw(request, &mut cmd) {
                Err(Errno::EINTR) => continue,
                result => {
                    return result.map(|()| Counts { cpages: cmd.cpages, faults: cmd.faults });
                }
            }
        }
    }

    /// A command that copies `unit` bytes a page to `data`.
    fn copy_out(
        &self,
        request: u32,
        pages: Pages,
        data: &mut [u8],
        unit: usize,
    ) -> Result<Counts, Errno> {
        assert_eq!(data.len(), pages.count * unit, "buffer for {} pages", pages.count);
        self.command(request, pages, data.as_mut_ptr().expose_provenance())
    }

    fn data(&self, request: u32, pages: Pages) -> Result<Data, Errno> {
        let mut data = vec![0; pages.bytes()];
        let Counts { cpages, faults } = self.copy_out(request, pages, &mut data, PAGE_SIZE)?;
        Ok(Data { data, cpages, faults })
    }

    /// The device reads.
    pub fn read(&self, pages: Pages) -> Result<Data, Errno> {
        self.data(uapi::READ, pages)
    }

    /// The device reads into a buffer of the same size, to see what an error leaves.
    pub fn read_into(&self, pages: Pages, data: &mut [u8]) -> Result<Counts, Errno> {
        self.copy_out(uapi::READ, pages, data, PAGE_SIZE)
    }

    /// The device reads by the unlocked page table walk.
    pub fn read_unlocked(&self, pages: Pages) -> Result<Data, Errno> {
        self.data(uapi::READ_UNLOCKED, pages)
    }

    /// The device writes; `data` has the size of the pages.
    pub fn write(&self, pages: Pages, data: &[u8]) -> Result<Counts, Errno> {
        assert_eq!(data.len(), pages.bytes(), "data for {} pages", pages.count);
        self.command(uapi::WRITE, pages, data.as_ptr().expose_provenance())
    }

    /// Migrates to the device; the data is what the device then sees.
    pub fn migrate_to_dev(&self, pages: Pages) -> Result<Data, Errno> {
        self.data(uapi::MIGRATE_TO_DEV, pages)
    }

    /// Migrates back to system memory.
    pub fn migrate_to_sys(&self, pages: Pages) -> Result<Counts, Errno> {
        self.command(uapi::MIGRATE_TO_SYS, pages, 0)
    }

    /// How each page is mapped: a byte a page, see [`prot`](crate::uapi::prot).
    pub fn snapshot(&self, pages: Pages) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; pages.count];
        self.copy_out(uapi::SNAPSHOT, pages, &mut bytes, 1)?;
        Ok(bytes)
    }

    /// Gives the device exclusive access; the data is what it then sees.
    pub fn exclusive(&self, pages: Pages) -> Result<Data, Errno> {
        self.data(uapi::EXCLUSIVE, pages)
    }

    /// `EPERM` if any page is still exclusive to the device.
    pub fn check_exclusive(&self, pages: Pages) -> Result<(), Errno> {
        self.command(uapi::CHECK_EXCLUSIVE, pages, 0).map(drop)
    }

    /// Evicts everything on the device.
    pub fn release(&self) -> Result<(), Errno> {
        // The drivers validate a range that they do not use.
        self.command(uapi::RELEASE, Pages { addr: 0, count: 1 }, 0).map(drop)
    }

    /// Sets the flags of this mirror, `FLAG_*`.
    pub fn set_flags(&self, flags: u64) -> Result<(), Errno> {
        let mut cmd = Cmd { npages: flags, ..Cmd::default() };
        self.raw(uapi::FLAGS, &mut cmd)
    }

    /// The next allocation of a migration of this mirror fails.
    pub fn fail_next_allocation(&self) -> Result<(), Errno> {
        self.set_flags(uapi::FLAG_FAIL_ALLOC)
    }

    /// Type of the device's memory as the driver says it.
    pub fn mem_dev_type(&self) -> Result<u32, Errno> {
        uapi::mem_dev_type(self.as_fd())
    }
}

impl From<OwnedFd> for Device {
    /// A node that another process has opened, whose address space it mirrors.
    fn from(fd: OwnedFd) -> Self {
        Self { file: fd.into() }
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The driver behind the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// `test_hmm_rs`.
    Rust,
    /// `test_hmm` of a kernel with generic device memory.
    C,
    /// `test_hmm` of a kernel without: no `GET_MEM_DEV_TYPE`, no generic memory.
    UnpatchedC,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rust => "test_hmm_rs",
            Self::C => "test_hmm",
            Self::UnpatchedC => "test_hmm without GET_MEM_DEV_TYPE",
        })
    }
}

/// The device nodes there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    /// The driver of all of them.
    pub driver: Driver,
    nodes: BTreeMap<MemoryType, [PathBuf; 2]>,
}

impl Devices {
    /// Looks for nodes in a folder and asks each for its type. The error says what is
    /// wrong with the environment.
    pub fn find(folder: &Path) -> Result<Self, String> {
        let mut numbers = node_numbers(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        numbers.sort_unstable();
        let mut has_type_command = true;
        let mut found: BTreeMap<MemoryType, Vec<PathBuf>> = BTreeMap::new();
        for number in numbers {
            let path = folder.join(format!("{NODE_PREFIX}{number}"));
            let error = |e: &dyn fmt::Display| format!("{}: {e}", path.display());
            let device = Device::open(&path).map_err(|e| error(&e))?;
            let memory_type = match device.mem_dev_type() {
                Ok(value) => MemoryType::from_value(value)
                    .ok_or_else(|| error(&format!("unknown memory type {value}")))?,
                Err(Errno::EINVAL | Errno::ENOTTY) => {
                    has_type_command = false;
                    type_by_number(number).ok_or_else(|| error(&"unknown number"))?
                }
                Err(errno) => return Err(error(&errno)),
            };
            found.entry(memory_type).or_default().push(path);
        }
        let mut nodes = BTreeMap::new();
        for (memory_type, paths) in found {
            let pair: [PathBuf; 2] = paths.try_into().map_err(|paths: Vec<_>| {
                format!("{} nodes of type {memory_type}, not 2: {paths:?}", paths.len())
            })?;
            nodes.insert(memory_type, pair);
        }
        let driver = if Path::new(MODULES).join("test_hmm_rs").exists() {
            Driver::Rust
        } else if has_type_command {
            Driver::C
        } else {
            Driver::UnpatchedC
        };
        Ok(Self { driver, nodes })
    }

    /// The two nodes of a type, if the driver made them.
    pub fn nodes(&self, memory_type: MemoryType) -> Option<&[PathBuf; 2]> {
        self.nodes.get(&memory_type)
    }

    /// The nodes of all types.
    pub fn all_nodes(&self) -> impl Iterator<Item = &PathBuf> {
        self.nodes.values().flatten()
    }

    /// Whether there is no node of any type.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}

/// The type of a node when the driver does not tell: two of each, in order.
fn type_by_number(number: usize) -> Option<MemoryType> {
    MemoryType::ALL.get(number / 2).copied()
}

fn node_numbers(folder: &Path) -> io::Result<Vec<usize>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(NODE_PREFIX));
        numbers.extend(number.and_then(|digits| digits.parse::<usize>().ok()));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_by_number() {
        assert_eq!(type_by_number(0), Some(MemoryType::Private));
        assert_eq!(type_by_number(3), Some(MemoryType::Coherent));
        assert_eq!(type_by_number(4), Some(MemoryType::Generic));
        assert_eq!(type_by_number(6), None);
    }

    #[test]
    fn a_folder_without_nodes() {
        let folder = std::env::temp_dir().join(format!("hmm-selftests-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        for name in ["null", "hmm_dmirror", "hmm_dmirrorx"] {
            fs::write(folder.join(name), "").unwrap();
        }
        let devices = Devices::find(&folder);
        fs::write(folder.join("hmm_dmirror0"), "").unwrap();
        let no_device = Devices::find(&folder);
        fs::remove_dir_all(&folder).unwrap();
        assert!(devices.unwrap().is_empty());
        // A regular file knows no ioctl, so its number tells; but there is only one.
        assert!(no_device.unwrap_err().contains("1 nodes of type private"));
        assert!(Devices::find(&folder).is_err());
    }
}
