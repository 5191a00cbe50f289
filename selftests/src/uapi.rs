// SPDX-License-Identifier: GPL-2.0
//! What the drivers' header `test_hmm_uapi.h` defines.

use std::ffi::c_ulong;
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

use ioctl_sys::{ior, iorw};
use nix::errno::Errno;

/// Argument of every command but `GET_MEM_DEV_TYPE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cmd {
    /// In: user address that the device accesses.
    pub addr: u64,
    /// In: user address of the data copied from or to the device.
    pub ptr: u64,
    /// In: size of the range, in pages.
    pub npages: u64,
    /// Out: pages copied or migrated.
    pub cpages: u64,
    /// Out: device page faults.
    pub faults: u64,
}

const TYPE: u8 = b'H';

const fn request(nr: u8) -> u32 {
    iorw!(TYPE, nr, size_of::<Cmd>())
}

/// The device reads.
pub const READ: u32 = request(0x00);
/// The device writes.
pub const WRITE: u32 = request(0x01);
/// Migrates a range to the device, then reads it there.
pub const MIGRATE_TO_DEV: u32 = request(0x02);
/// Migrates a range back to system memory.
pub const MIGRATE_TO_SYS: u32 = request(0x03);
/// Tells how each page is mapped, see [`prot`].
pub const SNAPSHOT: u32 = request(0x04);
/// Gives the device exclusive access, then reads.
pub const EXCLUSIVE: u32 = request(0x05);
/// Fails if any page is still exclusive to the device.
pub const CHECK_EXCLUSIVE: u32 = request(0x06);
/// Evicts everything on the device.
pub const RELEASE: u32 = request(0x07);
/// Sets the mirror's flags.
pub const FLAGS: u32 = request(0x08);
/// As [`READ`], through the unlocked variant of the page table walk.
pub const READ_UNLOCKED: u32 = request(0x09);
/// Tells the type of the device's memory; its argument is a `u32`.
pub const GET_MEM_DEV_TYPE: u32 = ior!(TYPE, 0x0a, size_of::<u32>());

/// Bit of [`FLAGS`]: the next allocation of a migration fails.
pub const FLAG_FAIL_ALLOC: u64 = 1 << 0;

/// Bits and values of a byte of [`SNAPSHOT`].
pub mod prot {
    /// The page is not mapped in a way that the device could use.
    pub const ERROR: u8 = 0xff;
    /// Nothing is there, or no access.
    pub const NONE: u8 = 0x00;
    /// Read-only.
    pub const READ: u8 = 0x01;
    /// Read and write.
    pub const WRITE: u8 = 0x02;
    /// Part of a fully mapped PMD-sized page.
    pub const PMD: u8 = 0x04;
    /// Part of a fully mapped PUD-sized page.
    pub const PUD: u8 = 0x08;
    /// The zero page.
    pub const ZERO: u8 = 0x10;
    /// Private memory of the device asked.
    pub const DEV_PRIVATE_LOCAL: u8 = 0x20;
    /// Private memory of another device.
    pub const DEV_PRIVATE_REMOTE: u8 = 0x30;
    /// Coherent memory of the device asked.
    pub const DEV_COHERENT_LOCAL: u8 = 0x40;
    /// Coherent memory of another device.
    pub const DEV_COHERENT_REMOTE: u8 = 0x50;
    /// Generic memory of the device asked.
    pub const DEV_GENERIC_LOCAL: u8 = 0x60;
    /// Generic memory of another device.
    pub const DEV_GENERIC_REMOTE: u8 = 0x70;
}

/// Type of a device's memory; the values are those of `GET_MEM_DEV_TYPE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
#[repr(u32)]
pub enum MemoryType {
    /// The CPU cannot access it; a CPU fault brings a page back.
    Private = 1,
    /// The CPU can access it; pages cannot be pinned for the long term.
    Coherent = 2,
    /// The CPU can access it; pages can be pinned for the long term.
    Generic = 3,
}

impl MemoryType {
    /// All of them, in the order of their devices' numbers.
    pub const ALL: &[MemoryType] = &[Self::Private, Self::Coherent, Self::Generic];

    /// The type that `GET_MEM_DEV_TYPE` calls `value`.
    pub fn from_value(value: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|&t| t as u32 == value)
    }

    /// Name as in the drivers' parameter `device_type`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Coherent => "coherent",
            Self::Generic => "generic",
        }
    }

    /// Whether the CPU maps device pages instead of faulting them back.
    pub const fn is_cpu_accessible(self) -> bool {
        !matches!(self, Self::Private)
    }

    /// Snapshot bits of a page on the device asked, without permissions.
    pub const fn local(self) -> u8 {
        match self {
            Self::Private => prot::DEV_PRIVATE_LOCAL,
            Self::Coherent => prot::DEV_COHERENT_LOCAL,
            Self::Generic => prot::DEV_GENERIC_LOCAL,
        }
    }

    /// Snapshot byte of a page on another device that is mapped with
    /// `permission` ([`prot::READ`] or [`prot::WRITE`]) there.
    pub const fn remote(self, permission: u8) -> u8 {
        match self {
            // Unusable for any other device, so not mapped at all.
            Self::Private => prot::NONE,
            Self::Coherent => prot::DEV_COHERENT_REMOTE | permission,
            Self::Generic => prot::DEV_GENERIC_REMOTE | permission,
        }
    }
}

impl fmt::Display for MemoryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Issues `request` with a pointer to `cmd`.
pub fn command(fd: BorrowedFd<'_>, request: u32, cmd: &mut Cmd) -> Result<(), Errno> {
    issue(fd, request, std::ptr::from_mut(cmd).expose_provenance())
}

/// Issues `request` with any argument, such as an invalid pointer.
///
/// The drivers write to the caller's memory at the addresses they are given, as
/// `/proc/self/mem` does: name only memory that no Rust reference points to, or
/// a buffer that the caller may overwrite.
pub fn issue(fd: BorrowedFd<'_>, request: u32, argument: usize) -> Result<(), Errno> {
    // SAFETY: The descriptor is open as long as `fd` is borrowed. The kernel checks
    // every address; which memory it may write to is up to the caller, see above.
    let ret = unsafe { ioctl_sys::ioctl(fd.as_raw_fd(), c_ulong::from(request), argument) };
    Errno::result(ret).map(drop)
}

/// Issues `GET_MEM_DEV_TYPE`.
pub fn mem_dev_type(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    // A driver that does not know the command takes any argument for a `Cmd`, and
    // refuses one of zeroes.
    let mut argument = [0u32; size_of::<Cmd>() / size_of::<u32>()];
    issue(fd, GET_MEM_DEV_TYPE, argument.as_mut_ptr().expose_provenance())?;
    Ok(argument[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_by_value() {
        for &memory_type in MemoryType::ALL {
            assert_eq!(MemoryType::from_value(memory_type as u32), Some(memory_type));
        }
        assert_eq!(MemoryType::from_value(0), None);
        assert_eq!(MemoryType::from_value(4), None);
    }
}
