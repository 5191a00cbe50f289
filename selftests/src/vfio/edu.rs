// SPDX-License-Identifier: GPL-2.0
//! QEMU's educational PCI device.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use super::{IOVA, issue, vfio_request};
use crate::fail;
use crate::failure::{Context, Result, skip};
use crate::pages::PAGE_SIZE;

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

const GET_REGION_INFO: u32 = vfio_request(8);

/// Bytes that [`Edu`] transfers at a time: older QEMU aborts when all of its buffer is.
pub const TRANSFER: usize = PAGE_SIZE / 2;

/// The device: it has a buffer of one page, and DMA from and to it.
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
    /// Takes a device of VFIO, which has to be this one. Skips the test if it is not.
    pub(super) fn new(device: File) -> Result<Self> {
        const ID: &[u8] = &[0x34, 0x12, 0xe8, 0x11];

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
        Ok(Self { device, registers })
    }

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
