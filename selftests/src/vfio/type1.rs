// SPDX-License-Identifier: GPL-2.0
//! VFIO's own IOMMU type 1, for a group of devices in a container.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::{IOVA, issue, open_device, vfio_request};
use crate::fail;
use crate::failure::{Context, Result, skip};
use crate::pages::Pages;

const FOLDER: &str = "/dev/vfio";
const GROUPS: &str = "/sys/kernel/iommu_groups";
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

const SET_IOMMU: u32 = vfio_request(2);
const SET_CONTAINER: u32 = vfio_request(4);
const GET_DEVICE_FD: u32 = vfio_request(6);
const MAP_DMA: u32 = vfio_request(13);
const UNMAP_DMA: u32 = vfio_request(14);
const TYPE1V2_IOMMU: usize = 3;
const DMA_MAP_READ: u32 = 1 << 0;
const DMA_MAP_WRITE: u32 = 1 << 1;

/// A container of VFIO, with a group of devices in it.
#[derive(Debug)]
pub(super) struct Type1 {
    container: File,
    _group: File,
}

impl Type1 {
    /// Takes the first group of devices that are bound to a driver of VFIO, and a device of
    /// it. Skips the test if there is none.
    pub(super) fn open() -> Result<(Self, File)> {
        let Some(path) = first_group(Path::new(FOLDER)).context(FOLDER)? else {
            return skip(format!(
                "no group of devices in {FOLDER}: an IOMMU, CONFIG_VFIO_PCI, a device bound to it"
            ));
        };
        let (container, group) = (open_device(Path::new(CONTAINER))?, open_device(&path)?);
        let fd: RawFd = container.as_raw_fd();
        let argument = std::ptr::from_ref(&fd).expose_provenance();
        issue(&group, SET_CONTAINER, argument).context("VFIO_GROUP_SET_CONTAINER")?;
        issue(&container, SET_IOMMU, TYPE1V2_IOMMU).context("VFIO_SET_IOMMU")?;
        let folder = Path::new(GROUPS).join(path.file_name().unwrap_or_default()).join("devices");
        let device = device_of(&group, &folder)?;
        Ok((Self { container, _group: group }, device))
    }

    pub(super) fn map(&self, pages: Pages) -> Result<(), Errno> {
        let argument = MapArgument {
            size: size_of::<MapArgument>() as u32,
            flags: DMA_MAP_READ | DMA_MAP_WRITE,
            vaddr: pages.addr as u64,
            iova: IOVA,
            length: pages.bytes() as u64,
        };
        issue(&self.container, MAP_DMA, std::ptr::from_ref(&argument).expose_provenance())
    }

    /// Returns how much was unmapped.
    pub(super) fn unmap(&self, length: u64) -> Result<u64, Errno> {
        let mut argument =
            UnmapArgument { size: size_of::<UnmapArgument>() as u32, flags: 0, iova: IOVA, length };
        let pointer = std::ptr::from_mut(&mut argument).expose_provenance();
        issue(&self.container, UNMAP_DMA, pointer)?;
        Ok(argument.length)
    }
}

/// Takes the device of a group.
fn device_of(group: &File, folder: &Path) -> Result<File> {
    let name = match fs::read_dir(folder).context(folder.display())?.next() {
        Some(entry) => entry?.file_name(),
        None => fail!("no device in {}", folder.display()),
    };
    let name = CString::new(name.as_encoded_bytes())?;
    // SAFETY: The argument is a string.
    let device =
        unsafe { ioctl_sys::ioctl(group.as_raw_fd(), GET_DEVICE_FD.into(), name.as_ptr()) };
    let device = Errno::result(device).context("VFIO_GROUP_GET_DEVICE_FD")?;
    // SAFETY: The descriptor is new, so nobody else closes it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(device) }))
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
