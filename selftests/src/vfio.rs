// SPDX-License-Identifier: GPL-2.0
//! VFIO: a PCI device in the hands of this program, which accesses memory as its IOMMU
//! lets it. The kernel pins that memory for the long term.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ioctl_sys::io as io_request;
use nix::errno::Errno;

use crate::fail;
use crate::failure::{Context, Result, skip};
use crate::pages::{PAGE_SIZE, Pages};

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

/// Argument of `VFIO_DEVICE_GET_REGION_INFO`.
#[repr(C)]
#[derive(Default)]
struct RegionArgument {
    size: u32,
    flags: u32,
    index: u32,
    cap_offset: u32,
    length: u64,
    offset: u64,
}

const fn request(number: u8) -> u32 {
    io_request!(b';', 100 + number)
}

const SET_IOMMU: u32 = request(2);
const SET_CONTAINER: u32 = request(4);
const GET_DEVICE_FD: u32 = request(6);
const GET_REGION_INFO: u32 = request(8);
const MAP_DMA: u32 = request(13);
const UNMAP_DMA: u32 = request(14);
const TYPE1V2_IOMMU: usize = 3;
const DMA_MAP_READ: u32 = 1 << 0;
const DMA_MAP_WRITE: u32 = 1 << 1;

/// Where the device sees the memory: anywhere but where x86 has interrupts, and where the
/// 28 bits reach that QEMU's `edu` has for addresses.
const IOVA: u64 = 1 << 27;

/// A container of VFIO, with a group of devices in it.
#[derive(Debug)]
pub struct Container {
    container: File,
    group: File,
    /// The group's number.
    number: String,
}

impl Container {
    /// Takes the first group of devices that are bound to a driver of VFIO. Skips the test
    /// if there is none.
    pub fn open() -> Result<Self> {
        let Some(path) = first_group(Path::new(FOLDER)).context(FOLDER)? else {
            return skip(format!(
                "no group of devices in {FOLDER}: an IOMMU, CONFIG_VFIO_PCI, a device bound to it"
            ));
        };
        let open = |path: &Path| {
            OpenOptions::new().read(true).write(true).open(path).context(path.display())
        };
        let (container, group) = (open(Path::new(CONTAINER))?, open(&path)?);
        let fd: RawFd = container.as_raw_fd();
        let argument = std::ptr::from_ref(&fd).expose_provenance();
        issue(&group, SET_CONTAINER, argument).context("VFIO_GROUP_SET_CONTAINER")?;
        issue(&container, SET_IOMMU, TYPE1V2_IOMMU).context("VFIO_SET_IOMMU")?;
        let number = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { container, group, number })
    }

    /// Takes the group's device, which has to be QEMU's `edu`. Skips the test if it is not.
    pub fn edu(&self) -> Result<Edu> {
        const ID: &[u8] = &[0x34, 0x12, 0xe8, 0x11];

        let folder = Path::new(GROUPS).join(&self.number).join("devices");
        let name = match fs::read_dir(&folder).context(folder.display())?.next() {
            Some(entry) => entry?.file_name(),
            None => fail!("no device in {}", folder.display()),
        };
        let name = CString::new(name.as_encoded_bytes())?;
        // SAFETY: The argument is a string.
        let device = unsafe {
            ioctl_sys::ioctl(self.group.as_raw_fd(), GET_DEVICE_FD.into(), name.as_ptr())
        };
        let device = Errno::result(device).context("VFIO_GROUP_GET_DEVICE_FD")?;
        // SAFETY: The descriptor is new, so nobody else closes it.
        let device = File::from(unsafe { OwnedFd::from_raw_fd(device) });
        let registers = region(&device, BAR0_REGION)?;
        let config = region(&device, CONFIG_REGION)?;
        let mut id = [0; 4];
        device.read_exact_at(&mut id, config).context("PCI configuration")?;
        if id != ID {
            return skip(format!("VFIO has another device than QEMU's edu: {id:02x?}"));
        }
        let command = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
        device
            .write_all_at(&command.to_le_bytes(), config + PCI_COMMAND)
            .context("making it bus master")?;
        Ok(Edu { device, registers })
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

/// Bytes that [`Edu`] transfers at a time: older QEMU aborts when all of its buffer is.
pub const TRANSFER: usize = PAGE_SIZE / 2;

/// QEMU's educational PCI device, which has a buffer of one page, and DMA from and to it.
#[derive(Debug)]
pub struct Edu {
    device: File,
    /// Offset of its registers in the file.
    registers: u64,
}

const BAR0_REGION: u32 = 0;
const CONFIG_REGION: u32 = 7;
const PCI_COMMAND: u64 = 4;
const PCI_COMMAND_MEMORY: u16 = 2;
const PCI_COMMAND_MASTER: u16 = 4;

// Registers of the device.
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;
/// Set until the transfer is over.
const DMA_RUN: u32 = 1;
const DMA_TO_MEMORY: u32 = 2;
/// The device's own address of its buffer.
const BUFFER: u64 = 0x40000;

/// How long a transfer may take; it is a tenth of a second.
const TRANSFER_LIMIT: Duration = Duration::from_secs(60);

impl Edu {
    /// Has it copy the beginning of a page of the memory that it can access into its buffer.
    pub fn read(&self, page: usize) -> Result {
        self.transfer(IOVA + (page * PAGE_SIZE) as u64, BUFFER, 0)
    }

    /// Has it copy its buffer to the beginning of a page of the memory that it can access.
    pub fn write(&self, page: usize) -> Result {
        self.transfer(BUFFER, IOVA + (page * PAGE_SIZE) as u64, DMA_TO_MEMORY)
    }

    fn transfer(&self, source: u64, destination: u64, direction: u32) -> Result {
        self.set(DMA_SOURCE, u32::try_from(source)?)?;
        self.set(DMA_DESTINATION, u32::try_from(destination)?)?;
        self.set(DMA_COUNT, TRANSFER as u32)?;
        self.set(DMA_COMMAND, DMA_RUN | direction)?;
        let end = Instant::now() + TRANSFER_LIMIT;
        while self.get(DMA_COMMAND)? & DMA_RUN != 0 {
            if Instant::now() > end {
                fail!("the device's transfer does not end");
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn set(&self, register: u64, value: u32) -> io::Result<()> {
        self.device.write_all_at(&value.to_le_bytes(), self.registers + register)
    }

    fn get(&self, register: u64) -> io::Result<u32> {
        let mut value = [0; 4];
        self.device.read_exact_at(&mut value, self.registers + register)?;
        Ok(u32::from_le_bytes(value))
    }
}

/// The offset of a region of a device in its file.
fn region(device: &File, index: u32) -> Result<u64> {
    let size = size_of::<RegionArgument>() as u32;
    let mut argument = RegionArgument { size, index, ..Default::default() };
    let pointer = std::ptr::from_mut(&mut argument).expose_provenance();
    issue(device, GET_REGION_INFO, pointer).context("VFIO_DEVICE_GET_REGION_INFO")?;
    Ok(argument.offset)
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
