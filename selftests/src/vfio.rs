// SPDX-License-Identifier: GPL-2.0
//! VFIO: a PCI device in the hands of this program, which accesses memory as its IOMMU
//! lets it. The kernel pins that memory for the long term.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use ioctl_sys::io as io_request;
use nix::errno::Errno;

use crate::failure::{Context, Result, skip};
use crate::pages::Pages;

const FOLDER: &str = "/dev/vfio";
const CONTAINER: &str = "/dev/vfio/vfio";

/// Argument of `VFIO_IOMMU_MAP_DMA`.
#[repr(C)]
struct MapArgument {
    size: u32,
    flags: u32,
    vaddr: u64,
    iova: u64,
    length: u64,
}

/// Argument of `VFIO_IOMMU_UNMAP_DMA`.
#[repr(C)]
struct UnmapArgument {
    size: u32,
    flags: u32,
    iova: u64,
    length: u64,
}

const fn request(number: u8) -> u32 {
    io_request!(b';', 100 + number)
}

const SET_IOMMU: u32 = request(2);
const SET_CONTAINER: u32 = request(4);
const MAP_DMA: u32 = request(13);
const UNMAP_DMA: u32 = request(14);
const TYPE1V2_IOMMU: usize = 3;
const DMA_MAP_READ: u32 = 1 << 0;
const DMA_MAP_WRITE: u32 = 1 << 1;

/// Where the device sees the memory: anywhere but where x86 has interrupts.
const IOVA: u64 = 1 << 30;

/// A container of VFIO, with a group of devices in it.
#[derive(Debug)]
pub struct Container {
    container: File,
    _group: File,
}

impl Container {
    /// Takes the first group of devices that are bound to a driver of VFIO. Skips the test
    /// if there is none.
    pub fn open() -> Result<Self> {
        let Some(group) = first_group(Path::new(FOLDER)).context(FOLDER)? else {
            return skip(format!(
                "no group of devices in {FOLDER}: an IOMMU, CONFIG_VFIO_PCI, a device bound to it"
            ));
        };
        let open = |path: &Path| {
            OpenOptions::new().read(true).write(true).open(path).context(path.display())
        };
        let (container, group) = (open(Path::new(CONTAINER))?, open(&group)?);
        let fd: RawFd = container.as_raw_fd();
        let argument = std::ptr::from_ref(&fd).expose_provenance();
        issue(&group, SET_CONTAINER, argument).context("VFIO_GROUP_SET_CONTAINER")?;
        issue(&container, SET_IOMMU, TYPE1V2_IOMMU).context("VFIO_SET_IOMMU")?;
        Ok(Self { container, _group: group })
    }

    /// Lets the device read and write the memory. One at a time.
    pub fn map(&self, pages: Pages) -> Result<DeviceAccess<'_>, Errno> {
        let length = pages.bytes() as u64;
        let argument = MapArgument {
            size: size_of::<MapArgument>() as u32,
            flags: DMA_MAP_READ | DMA_MAP_WRITE,
            vaddr: pages.addr as u64,
            iova: IOVA,
            length,
        };
        issue(&self.container, MAP_DMA, std::ptr::from_ref(&argument).expose_provenance())?;
        Ok(DeviceAccess { container: self, length })
    }
}

/// Memory that the device can access until it is dropped.
#[derive(Debug)]
pub struct DeviceAccess<'a> {
    container: &'a Container,
    length: u64,
}

impl Drop for DeviceAccess<'_> {
    fn drop(&mut self) {
        let mut argument = UnmapArgument {
            size: size_of::<UnmapArgument>() as u32,
            flags: 0,
            iova: IOVA,
            length: self.length,
        };
        let pointer = std::ptr::from_mut(&mut argument).expose_provenance();
        issue(&self.container.container, UNMAP_DMA, pointer).expect("mapped before");
        assert_eq!(argument.length, self.length, "length that was unmapped");
    }
}

fn issue(file: &File, request: u32, argument: usize) -> Result<(), Errno> {
    // SAFETY: `argument` is a number, or points to what the request takes, see the callers.
    let ret = unsafe { ioctl_sys::ioctl(file.as_raw_fd(), request.into(), argument) };
    Errno::result(ret).map(drop)
}

/// The group with the lowest number; the other node there is the container's.
fn first_group(folder: &Path) -> io::Result<Option<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(numbers.into_iter().min().map(|number| folder.join(number.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_numbers() {
        let folder =
            std::env::temp_dir().join(format!("hmm-selftests-vfio-{}", std::process::id()));
        assert_eq!(first_group(&folder).unwrap(), None);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("vfio"), "").unwrap();
        fs::create_dir(folder.join("devices")).unwrap();
        let none = first_group(&folder);
        for name in ["12", "7"] {
            fs::write(folder.join(name), "").unwrap();
        }
        let first = first_group(&folder);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(none.unwrap(), None);
        assert_eq!(first.unwrap(), Some(folder.join("7")));
    }
}
