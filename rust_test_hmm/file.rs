// SPDX-License-Identifier: GPL-2.0

//! An open file: a device that works on the memory of the process that has opened it.

use crate::{
    access,
    address_space::AddressSpace,
    device::Device,
    evict,
    migrate,
    uapi::{
        self,
        Cmd, //
    }, //
};
use kernel::{
    fs::File as FsFile,
    miscdevice::{
        MiscDevice,
        MiscDeviceRegistration, //
    },
    mm::virt::VmaNew,
    page::{
        Page,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::Arc,
    uaccess::UserSlice, //
};

/// The most that can be mapped at a time, in bytes. All of it is allocated at once.
const MAX_MMAP: usize = 64 << 20;

/// An open file. Processes can share it; the memory is always that of the one that has opened it.
#[pin_data]
pub(crate) struct File {
    #[pin]
    space: AddressSpace,
}

impl File {
    /// Does what a command other than [`uapi::FLAGS`] says.
    fn run(&self, request: u32, cmd: &mut Cmd) -> Result {
        let space = &self.space;
        let range = cmd.range()?;
        // What the process has mapped is no longer there if it has exited.
        let no_memory = |error| if error == ESRCH { EFAULT } else { error };
        let no_process = |error| if error == ESRCH { EINVAL } else { error };

        match request {
            uapi::READ => access::read(space, cmd, range).map_err(no_memory),
            uapi::READ_UNLOCKED => access::read_unlocked(space, cmd, range).map_err(no_memory),
            uapi::WRITE => access::write(space, cmd, range).map_err(no_memory),
            uapi::MIGRATE_TO_DEV => migrate::to_device(space, range.clone())
                .and_then(|()| access::read_back(space, cmd, range, access::OnDevice::Required))
                .map_err(no_process),
            uapi::MIGRATE_TO_SYS => {
                cmd.cpages = migrate::to_system(space, range).map_err(no_process)? as u64;
                Ok(())
            }
            uapi::SNAPSHOT => access::snapshot(space, cmd, range).map_err(no_process),
            uapi::EXCLUSIVE => access::exclusive(space, cmd, range).map_err(no_process),
            uapi::CHECK_EXCLUSIVE => access::check_exclusive(space, range),
            uapi::RELEASE => evict::release(space.device()),
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
        let device = misc.data().clone();
        let current = kernel::current!();
        let mm = current.mm().ok_or(EINVAL)?;

        KBox::try_pin_init(
            try_pin_init!(Self {
                space <- AddressSpace::new(device, mm),
            }),
            GFP_KERNEL,
        )
    }

    fn release(file: Pin<KBox<Self>>, _fs_file: &FsFile) {
        let device = file.space.device().clone();
        let owner = file.space.owner().clone();
        // Nothing that is evicted has to be invalidated any more.
        drop(file);
        let nr_folios = evict::evict_owned(device.pool(), &owner);
        if nr_folios > 0 {
            pr_info!(
                "{}: {nr_folios} folios of a closed file cannot be evicted now\n",
                device.name()
            );
        }
    }

    fn ioctl(file: Pin<&Self>, _fs_file: &FsFile, request: u32, arg: usize) -> Result<isize> {
        let arg = UserPtr::from_addr(arg);

        if request == uapi::GET_MEM_DEV_TYPE {
            let device_type = file.space.device().device_type().uapi();
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
            uapi::FLAGS => file.space.owner().set_flags(cmd.npages)?,
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
