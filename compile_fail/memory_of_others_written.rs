// SPDX-License-Identifier: GPL-2.0
//! Memory that a process has mapped is written to only where it may write itself.

use kernel::mm::hmm::Mapping;
use kernel::prelude::*;

pub fn write(mapping: Mapping<'_>, data: &[u8]) -> Result {
    mapping.write(0, data)?;
    mapping.page().write(0, data)?; //~ E0133
    Ok(())
}
