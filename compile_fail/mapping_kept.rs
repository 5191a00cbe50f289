// SPDX-License-Identifier: GPL-2.0
//! A page is known to be mapped only with the lock of the mirror held.

use kernel::mm::hmm::Mirror;
use kernel::prelude::*;

pub fn read(mirror: &Mirror, addr: usize, data: &mut [u8]) -> Result {
    let guard = mirror.lock();
    let page = guard.get(addr).ok_or(EFAULT)?.page();
    drop(guard); //~ E0505
    page.read(0, data)
}
