// SPDX-License-Identifier: GPL-2.0
//! VFIO: a PCI device in the hands of this program, which accesses memory as its IOMMU
//! lets it. The kernel pins that memory for the long term.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

use ioctl_sys::io as io_request;
use nix::errno::Errno;

use crate::failure::{Context, Result};
use crate::pages::Pages;

mod edu;
mod iommufd;
mod type1;

pub use edu::{Edu, TRANSFER};
use iommufd::Iommufd;
use type1::Type1;

/// Where the device sees the memory: anywhere but where x86 has interrupts, and where the
/// 28 bits reach that QEMU's `edu` has for addresses.
const IOVA: u64 = 1 << 27;

const fn vfio_request(number: u8) -> u32 {
    io_request!(b';', 100 + number)
}

/// What gives a device access to memory.
#[derive(Debug)]
enum Iommu {
    Type1(Type1),
    Iommufd(Iommufd),
}

/// A device that can be given access to memory.
#[derive(Debug)]
pub struct Container {
    iommu: Iommu,
    device: File,
}

impl Container {
    /// By a container of VFIO. Skips the test if there is no device for it.
    pub fn type1() -> Result<Self> {
        let (iommu, device) = Type1::open()?;
        Ok(Self { iommu: Iommu::Type1(iommu), device })
    }

    /// By iommufd. Skips the test if there is no device for it.
    pub fn iommufd() -> Result<Self> {
        let (iommu, device) = Iommufd::open()?;
        Ok(Self { iommu: Iommu::Iommufd(iommu), device })
    }

    /// The device, which has to be QEMU's `edu`. Skips the test if it is not.
    pub fn edu(&self) -> Result<Edu> {
        Edu::new(self.device.try_clone()?)
    }

    /// Lets the device read and write the memory. One at a time.
    pub fn map(&self, pages: Pages) -> Result<DeviceAccess<'_>, Errno> {
        match &self.iommu {
            Iommu::Type1(iommu) => iommu.map(pages)?,
            Iommu::Iommufd(iommu) => iommu.map(pages)?,
        }
        Ok(DeviceAccess { iommu: &self.iommu, length: pages.bytes() as u64 })
    }
}

/// Memory that the device can access until it is dropped.
#[derive(Debug)]
pub struct DeviceAccess<'a> {
    iommu: &'a Iommu,
    length: u64,
}

impl Drop for DeviceAccess<'_> {
    fn drop(&mut self) {
        let length = match self.iommu {
            Iommu::Type1(iommu) => iommu.unmap(self.length),
            Iommu::Iommufd(iommu) => iommu.unmap(self.length),
        };
        assert_eq!(length, Ok(self.length), "length that was unmapped");
    }
}

fn open_device(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).open(path).context(path.display())
}

fn issue(file: &File, request: u32, argument: usize) -> Result<(), Errno> {
    // SAFETY: `argument` is a number, or points to what the request takes, see the callers.
    let ret = unsafe { ioctl_sys::ioctl(file.as_raw_fd(), request.into(), argument) };
    Errno::result(ret).map(drop)
}
