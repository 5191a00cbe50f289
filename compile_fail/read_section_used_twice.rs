// SPDX-License-Identifier: GPL-2.0
//! What was read is as old as its read section.

use kernel::mm::notifier::{IntervalNotifier, Invalidate};
use kernel::prelude::*;

pub fn read<T: Invalidate>(notifier: &IntervalNotifier<T>) -> Result {
    let section = notifier.read_begin();
    drop(section.lock().ok_or(EAGAIN)?);
    drop(section.lock().ok_or(EAGAIN)?); //~ E0382
    Ok(())
}
