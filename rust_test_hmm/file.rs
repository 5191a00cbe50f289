// SPDX-License-Identifier: GPL-2.0

//! An open file: a device that works on the memory of the process that has opened it.

use crate::{
    access,
    device::Device,
    migrate,
    pool::Owner,
    uapi::{
        self,
        Cmd, //
    }, //
};
use core::ops::Range;
use kernel::{
    fs::File as FsFile,
    miscdevice::{
        MiscDevice,
        MiscDeviceRegistration, //
    },
    mm::{
        hmm::Mirror,
        virt::VmaNew,
        PMD_PAGES, //
    },
    page::{
        Page,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::Arc,
    uaccess::UserSlice, //
};

/// Pages that are worked on at a time.
pub(crate) const WINDOW_PAGES: usize = PMD_PAGES;

/// The most that can be mapped at a time, in bytes. All of it is allocated at once.
const MAX_MMAP: usize = 64 << 20;

/// Returns the first part of a range of addresses, in bytes, that is within a window.
pub(crate) fn first_window(range: Range<usize>) -> Range<usize> {
    const SIZE: usize = WINDOW_PAGES * PAGE_SIZE;

    let rest = SIZE - range.start % SIZE;
    range.start..range.start + rest.min(range.end - range.start)
}

/// An open file. Processes can share it; the memory is always that of the one that has opened it.
#[pin_data]
pub(crate) struct File {
    device: Arc<Device>,
    #[pin]
    mirror: Mirror,
    owner: Arc<Owner>,
}

impl File {
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    pub(crate) fn owner(&self) -> &Arc<Owner> {
        &self.owner
    }

    /// Returns whether all pages of a range of addresses, in bytes, are mapped and on this device.
    pub(crate) fn is_on_device(&self, range: Range<usize>) -> bool {
        let guard = self.mirror.lock();
        let memory = self.device.memory();
        range.step_by(PAGE_SIZE).all(|addr| {
            guard
                .get(addr)
                .is_some_and(|mapping| memory.device_page(mapping.page()).is_some())
        })
    }

    /// Does what a command other than [`uapi::FLAGS`] says.
    fn run(&self, request: u32, cmd: &mut Cmd) -> Result {
        let range = cmd.range()?;
        // What the process has mapped is no longer there if it has exited.
        let no_memory = |error| if error == ESRCH { EFAULT } else { error };
        let no_process = |error| if error == ESRCH { EINVAL } else { error };

        match request {
            uapi::READ => access::read(self, cmd, range).map_err(no_memory),
            uapi::READ_UNLOCKED => access::read_unlocked(self, cmd, range).map_err(no_memory),
            uapi::WRITE => access::write(self, cmd, range).map_err(no_memory),
            uapi::MIGRATE_TO_DEV => migrate::to_device(self, range.clone())
                .and_then(|()| access::read_back(self, cmd, range, access::OnDevice::Required))
                .map_err(no_process),
            uapi::MIGRATE_TO_SYS => {
                cmd.cpages = migrate::to_system(self, range).map_err(no_process)? as u64;
                Ok(())
            }
            uapi::SNAPSHOT => access::snapshot(self, cmd, range).map_err(no_process),
            uapi::EXCLUSIVE => access::exclusive(self, cmd, range).map_err(no_process),
            uapi::CHECK_EXCLUSIVE => access::check_exclusive(self, range),
            uapi::RELEASE => self.device.release(),
            _ => Err(ENOTTY),
        }
    }
}

#[vtable]
impl MiscDevice for File {
    type Ptr = Pin<KBox<Self>>;
    type RegistrationData = Arc<Device>;

    /// The lock of all misc devices is held, and that of the mm is taken for writing by the first
    /// notifier of a process. A driver must not open such a node with the mmap lock held.
    fn open(_file: &FsFile, misc: &MiscDeviceRegistration<Self>) -> Result<Pin<KBox<Self>>> {
        let device = misc.data();
        let current = kernel::current!();
        let mm = current.mm().ok_or(EINVAL)?;

        KBox::try_pin_init(
            try_pin_init!(Self {
                owner: Owner::new(device.pool())?,
                device: device.clone(),
                mirror <- Mirror::new(mm),
            }),
            GFP_KERNEL,
        )
    }

    fn release(file: Pin<KBox<Self>>, _fs_file: &FsFile) {
        let pool = file.device.pool();
        // Out of memory is a reason to leave pages behind, too. They are the device's to evict
        // later.
        let _ = migrate::Evictor::new().and_then(|mut evictor| {
            // The second time for what was locked or referenced for a moment.
            evictor.evict_owned(pool, &file.owner)?;
            evictor.evict_owned(pool, &file.owner)
        });
        let nr_folios = pool.nr_folios(&file.owner);
        if nr_folios > 0 {
            pr_info!(
                "{}: {nr_folios} folios of a closed file cannot be evicted now\n",
                file.device.name()
            );
        }
    }

    fn ioctl(file: Pin<&Self>, _fs_file: &FsFile, request: u32, arg: usize) -> Result<isize> {
        let arg = UserPtr::from_addr(arg);

        if request == uapi::GET_MEM_DEV_TYPE {
            let device_type = file.device.device_type().uapi();
            UserSlice::new(arg, size_of::<u32>())
                .writer()
                .write(&device_type)?;
            return Ok(0);
        }

        if !uapi::is_known(request) {
            return Err(ENOTTY);
        }
        let mut cmd = Cmd::default();
        UserSlice::new(arg, size_of::<Cmd>())
            .reader()
            .read_slice(cmd.as_mut_bytes())?;
        cmd.cpages = 0;
        cmd.faults = 0;
        match request {
            uapi::FLAGS => file.owner.set_flags(cmd.npages)?,
            request => file.run(request, &mut cmd)?,
        }
        UserSlice::new(arg, size_of::<Cmd>())
            .writer()
            .write_slice(cmd.as_mut_bytes())?;
        Ok(0)
    }

    /// Maps zeroed pages, all at once: memory that is not anonymous, and cannot be migrated.
    fn mmap(_file: Pin<&Self>, _fs_file: &FsFile, vma: &VmaNew) -> Result {
        if vma.end() - vma.start() > MAX_MMAP {
            return Err(ENOMEM);
        }
        let vma = vma.set_mixedmap();
        for addr in (vma.start()..vma.end()).step_by(PAGE_SIZE) {
            if kernel::current!().fatal_signal_pending() {
                return Err(EINTR);
            }
            let page = Page::alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO)?;
            vma.vm_insert_page(addr, &page)?;
        }
        Ok(())
    }
}

#[cfg(CONFIG_TEST_HMM_RS_KUNIT_TEST)]
#[kunit_tests(test_hmm_rs_windows)]
mod tests {
    use super::*;

    const SIZE: usize = WINDOW_PAGES * PAGE_SIZE;

    #[test]
    fn windows_are_aligned() {
        // Up to the boundary first, then whole windows, then the rest.
        assert_eq!(first_window(PAGE_SIZE..3 * SIZE), PAGE_SIZE..SIZE);
        assert_eq!(first_window(SIZE..3 * SIZE), SIZE..2 * SIZE);
        assert_eq!(first_window(SIZE..SIZE + PAGE_SIZE), SIZE..SIZE + PAGE_SIZE);
    }

    #[test]
    fn windows_do_not_wrap() {
        let end = usize::MAX - PAGE_SIZE + 1;
        let start = end - PAGE_SIZE;
        assert_eq!(first_window(start..end), start..end);
    }
}
