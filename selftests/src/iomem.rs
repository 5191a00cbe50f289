// SPDX-License-Identifier: GPL-2.0
//! The system's physical memory, and whose it is: `/proc/iomem`.

use std::fs;
use std::ops::Range;

use crate::failure::{Context, Result};

const IOMEM: &str = "/proc/iomem";
/// What the driver in C calls all its regions. That in Rust calls them as the device.
pub const DRIVER: &str = "hmm_dmirror";

/// A region of physical memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Addresses, in bytes.
    pub range: Range<u64>,
    /// Who has claimed it.
    pub name: String,
}

/// All regions.
pub fn regions() -> Result<Vec<Region>> {
    Ok(parse(&fs::read_to_string(IOMEM).context(IOMEM)?))
}

/// The regions that a driver of the devices has claimed.
pub fn device_regions() -> Result<Vec<Region>> {
    Ok(of_devices(regions()?))
}

fn of_devices(mut regions: Vec<Region>) -> Vec<Region> {
    regions.retain(|region| region.name.starts_with(DRIVER));
    regions
}

fn parse(iomem: &str) -> Vec<Region> {
    let regions = iomem.lines().filter_map(|line| {
        let (range, name) = line.trim_start().split_once(" : ")?;
        Some(Region { range: parse_range(range)?, name: name.into() })
    });
    regions.collect()
}

fn parse_range(text: &str) -> Option<Range<u64>> {
    let (start, last) = text.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    Some(address(start)?..address(last)? + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_of_devices() {
        let iomem = "\
00001000-0009fbff : System RAM
100000000-13fffffff : CXL Window 0
  100000000-10fffffff : hmm_dmirror4
  110000000-11fffffff : dax0.0
fd00000000-fd0fffffff : hmm_dmirror
";
        let region = |range, name: &str| Region { range, name: name.into() };
        let expected = [
            region(0x1_0000_0000..0x1_1000_0000, "hmm_dmirror4"),
            region(0xfd_0000_0000..0xfd_1000_0000, "hmm_dmirror"),
        ];
        assert_eq!(of_devices(parse(iomem)), expected);
        assert_eq!(parse(iomem)[0], region(0x1000..0x9fc00, "System RAM"));
        assert_eq!(parse(""), []);
    }
}
