// SPDX-License-Identifier: GPL-2.0
//! What the driver in C does wrong, or did: a test for each defect, by its number in
//! the name. Most of them crash or hang the kernel, so run them one a boot with a
//! driver that has not been mended. A test's first type shows its defect best.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Context, Test};
use crate::device::Device;
use crate::failure::Result;
use crate::pages::Pages;
use crate::test;
use crate::uapi::MemoryType::{Coherent, Generic, Private};
use crate::uapi::prot;

mod folios;
mod interface;
mod mirror;
mod races;
mod ramfs;
mod scarcity;

use folios::*;
use interface::*;
use mirror::*;
use races::*;
use scarcity::*;

/// Name of the group, which crashes the kernel with the driver in C.
pub const GROUP: &str = "defects";

/// The group's tests.
pub const TESTS: &[Test] = &[
    test!(d01_stale_backing_page),
    test!(d02_other_mirrors_not_told),
    test!(d03_split_backing_folio),
    test!(d04_allocation_fails_midway),
    test!(d05_closed_file_used),
    test!(d06_close_while_released),
    test!(d07_release_while_migrating).only(&[Coherent, Generic, Private]),
    test!(d08_release_of_referenced_page).only(&[Coherent, Generic, Private]),
    test!(d09_close_without_free_huge_page),
    test!(d10_allocation_of_huge_page_fails).only(&[Coherent, Generic, Private]),
    test!(d11_write_after_fork),
    test!(d12_discard_while_migrating).only(&[Coherent, Generic, Private]),
    test!(d13_write_while_migrating).only(&[Coherent, Generic, Private]),
    test!(d14_neighbour_invalidated),
    test!(d15_write_not_dirty),
    test!(d16_huge_page_to_cpu_accessible).only(&[Coherent, Generic]),
    test!(d17_split_folios_used_up),
    test!(d18_bad_arguments_accepted),
    test!(d19_unlimited_size),
    test!(d20_memory_of_others).only(&[Coherent, Generic]),
    test!(d21_wrong_counts),
    test!(d22_close_evicts_others),
];

/// Number of pages that are on the device.
fn local_pages(ctx: &Context, device: &Device, pages: Pages) -> Result<usize> {
    const PLACE: u8 = !(prot::READ | prot::WRITE | prot::PMD | prot::PUD);
    let bytes = device.snapshot(pages)?;
    Ok(bytes.iter().filter(|&byte| byte & PLACE == ctx.memory_type.local()).count())
}

/// Runs both at once, the second after a delay, and returns what both do.
fn at_once<A, B: Send>(
    first: impl FnOnce() -> A,
    delay: Duration,
    second: impl FnOnce() -> B + Send,
) -> (A, B) {
    let is_ready = AtomicBool::new(false);
    thread::scope(|scope| {
        let second = scope.spawn(|| {
            is_ready.store(true, Ordering::Release);
            spin_for(delay);
            second()
        });
        while !is_ready.load(Ordering::Acquire) {
            thread::yield_now();
        }
        (first(), second.join().expect("no panic"))
    })
}

/// A sleep would take much longer.
fn spin_for(delay: Duration) {
    let start = Instant::now();
    while start.elapsed() < delay {
        std::hint::spin_loop();
    }
}
