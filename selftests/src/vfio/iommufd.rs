// SPDX-License-Identifier: GPL-2.0
//! iommufd, for a device that VFIO has as a file of its own.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use ioctl_sys::io as io_request;
use nix::errno::Errno;

use super::{IOVA, issue, open_device, vfio_request};
use crate::failure::{Context, Result, skip};
use crate::pages::Pages;

const DEVICES: &str = "/dev/vfio/devices";
const IOMMU: &str = "/dev/iommu";

/// Argument of `VFIO_DEVICE_BIND_IOMMUFD`.
#[repr(C)]
struct BindArgument {
    size: u32,
    flags: u32,
    iommufd: i32,
    out_device: u32,
}

/// Argument of `VFIO_DEVICE_ATTACH_IOMMUFD_PT`.
#[repr(C)]
struct AttachArgument {
    size: u32,
    flags: u32,
    page_table: u32,
}

/// Argument of `IOMMU_IOAS_ALLOC`.
#[repr(C)]
struct AllocArgument {
    size: u32,
    flags: u32,
    out_ioas: u32,
}

/// Argument of `IOMMU_IOAS_MAP`.
#[repr(C)]
struct MapArgument {
    size: u32,
    flags: u32,
    ioas: u32,
    reserved: u32,
    addr: u64,
    length: u64,
    iova: u64,
}

/// Argument of `IOMMU_IOAS_UNMAP`.
#[repr(C)]
struct UnmapArgument {
    size: u32,
    ioas: u32,
    iova: u64,
    length: u64,
}

const fn request(number: u8) -> u32 {
    io_request!(b';', 0x80 + number)
}

const BIND_IOMMUFD: u32 = vfio_request(18);
const ATTACH_IOMMUFD_PT: u32 = vfio_request(19);
const IOAS_ALLOC: u32 = request(1);
const IOAS_MAP: u32 = request(5);
const IOAS_UNMAP: u32 = request(6);
const MAP_FIXED_IOVA: u32 = 1 << 0;
const MAP_WRITEABLE: u32 = 1 << 1;
const MAP_READABLE: u32 = 1 << 2;

/// An address space that a device is attached to: what is mapped there is pinned at once.
#[derive(Debug)]
pub(super) struct Iommufd {
    file: File,
    ioas: u32,
}

impl Iommufd {
    /// Takes the first device that is bound to a driver of VFIO. Skips the test if there is
    /// none.
    pub(super) fn open() -> Result<(Self, File)> {
        let first = fs::read_dir(DEVICES).ok().and_then(|mut entries| entries.next());
        let Some(entry) = first else {
            return skip(format!(
                "no device in {DEVICES}: an IOMMU, CONFIG_VFIO_DEVICE_CDEV, a device bound to VFIO"
            ));
        };
        let (file, device) = (open_device(Path::new(IOMMU))?, open_device(&entry?.path())?);

        let mut bind = BindArgument {
            size: size_of::<BindArgument>() as u32,
            flags: 0,
            iommufd: file.as_raw_fd(),
            out_device: 0,
        };
        let argument = std::ptr::from_mut(&mut bind).expose_provenance();
        issue(&device, BIND_IOMMUFD, argument).context("VFIO_DEVICE_BIND_IOMMUFD")?;

        let size = size_of::<AllocArgument>() as u32;
        let mut alloc = AllocArgument { size, flags: 0, out_ioas: 0 };
        let argument = std::ptr::from_mut(&mut alloc).expose_provenance();
        issue(&file, IOAS_ALLOC, argument).context("IOMMU_IOAS_ALLOC")?;

        let size = size_of::<AttachArgument>() as u32;
        let mut attach = AttachArgument { size, flags: 0, page_table: alloc.out_ioas };
        let argument = std::ptr::from_mut(&mut attach).expose_provenance();
        issue(&device, ATTACH_IOMMUFD_PT, argument).context("VFIO_DEVICE_ATTACH_IOMMUFD_PT")?;
        Ok((Self { file, ioas: alloc.out_ioas }, device))
    }

    pub(super) fn map(&self, pages: Pages) -> Result<(), Errno> {
        let mut argument = MapArgument {
            size: size_of::<MapArgument>() as u32,
            flags: MAP_FIXED_IOVA | MAP_WRITEABLE | MAP_READABLE,
            ioas: self.ioas,
            reserved: 0,
            addr: pages.addr as u64,
            length: pages.bytes() as u64,
            iova: IOVA,
        };
        issue(&self.file, IOAS_MAP, std::ptr::from_mut(&mut argument).expose_provenance())
    }

    /// Returns how much was unmapped.
    pub(super) fn unmap(&self, length: u64) -> Result<u64, Errno> {
        let size = size_of::<UnmapArgument>() as u32;
        let mut argument = UnmapArgument { size, ioas: self.ioas, iova: IOVA, length };
        let pointer = std::ptr::from_mut(&mut argument).expose_provenance();
        issue(&self.file, IOAS_UNMAP, pointer)?;
        Ok(argument.length)
    }
}
