// SPDX-License-Identifier: GPL-2.0

//! Module to test HMM (Heterogeneous Memory Management) and migration to and from device memory.
//!
//! Simulates devices with memory of their own, private to them, coherent, or generic, which work
//! on the memory of the processes that open them. It makes the same device nodes as `test_hmm`,
//! and has the same interface, see `lib/test_hmm_uapi.h`.

use crate::{
    device::Device,
    file::File,
    memory_types::DeviceType, //
};
use core::ops::Range;
use kernel::{
    device::Core,
    driver,
    io::PhysAddr,
    miscdevice::{
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    platform,
    prelude::*,
    sync::Arc, //
};

// In layers: a file uses only what is above it here, or in its own layer without a ring.

// Constants and the ABI.
mod memory_types;
mod params;
mod uapi;
mod windows;

// Memory of a device: its chunks, which of their pages are free, and who has the others.
mod device;
mod folio_list;
mod free_pages;
mod pool;
mod spm;

// What is done with it: migration and access.
mod access;
mod address_space;
mod callbacks;
mod destinations;
mod evict;
mod migrate;

// Open files.
mod file;

module! {
    type: TestHmm,
    name: "test_hmm_rs",
    description: "HMM (Heterogeneous Memory Management) test module, in Rust",
    license: "GPL",
    params: {
        device_type: string {
            default: "",
            description: "Memory type of the devices: private, coherent or generic. Only \
                the two devices of that type are made. If unset, all for which there is memory.",
        },
        spm_addr_dev0: u64 {
            default: 0,
            description: "Start of 256 MB of special-purpose memory (of one huge page if that is \
                larger) for the first coherent or, with device_type=generic, generic device. If \
                unset, what firmware lists is searched.",
        },
        spm_addr_dev1: u64 {
            default: 0,
            description: "The same for the second device. Set both or none.",
        },
    },
}

/// What devices to make.
struct Plan {
    types: KVec<DeviceType>,
    /// Memory of the devices that need special-purpose memory, in their order.
    spm: KVec<Range<PhysAddr>>,
}

impl Plan {
    fn from_params() -> Result<Self> {
        let wanted_name = module_parameters::device_type.value();
        let wanted = params::device_type(wanted_name.as_bytes()).inspect_err(|_| {
            pr_err!("unknown device_type={wanted_name}, use private, coherent or generic\n");
        })?;
        let addrs = params::spm_addrs(
            module_parameters::spm_addr_dev0.value(),
            module_parameters::spm_addr_dev1.value(),
        )
        .inspect_err(|_| {
            pr_err!("set both spm_addr_dev0 and spm_addr_dev1, or none of them\n");
        })?;
        let choices: &[&[DeviceType]] = match (wanted, addrs) {
            (Some(DeviceType::Private), _) => &[&[DeviceType::Private]],
            (Some(DeviceType::Coherent), _) => &[&[DeviceType::Coherent]],
            (Some(DeviceType::Generic), _) => &[&[DeviceType::Generic]],
            // As test_hmm: there is memory for two devices.
            (None, Some(_)) => &[&[DeviceType::Private, DeviceType::Coherent]],
            // As many as there is memory for.
            (None, None) => &[
                &DeviceType::ALL,
                &[DeviceType::Private, DeviceType::Coherent],
                &[DeviceType::Private],
            ],
        };
        for types in choices {
            let nr_spm = 2 * types
                .iter()
                .filter(|device_type| device_type.is_spm())
                .count();
            let spm = match addrs {
                _ if nr_spm == 0 => Ok(KVec::new()),
                Some(addrs) => spm::at(addrs),
                None => spm::find(nr_spm),
            };
            match spm {
                Ok(spm) => return Self::new(types, spm),
                Err(ENODEV) => {}
                Err(error) => return Err(error),
            }
        }
        pr_err!(
            "device_type={wanted_name} needs special-purpose memory, which firmware lists with \
             EFI_MEMORY_SP, and of which there is none left (on x86, \
             memmap=<size>%<start>-1+0xefffffff at boot makes some)\n"
        );
        Err(ENODEV)
    }

    fn new(types: &[DeviceType], spm: KVec<Range<PhysAddr>>) -> Result<Self> {
        let mut plan = Self {
            types: KVec::new(),
            spm,
        };
        plan.types.extend_from_slice(types, GFP_KERNEL)?;
        Ok(plan)
    }
}

/// Devices whose memory is evicted and removed when this is dropped. Their nodes must be gone
/// then.
struct Devices(KVec<Arc<Device>>);

impl Devices {
    fn new(plan: Plan) -> Result<Self> {
        let mut devices = Self(KVec::new());
        let mut spm = plan.spm.into_iter();
        for device_type in plan.types {
            for name in device_type.nodes() {
                let device = Device::new(name, device_type)?;
                devices.0.push(device.clone(), GFP_KERNEL)?;
                if device_type.is_spm() {
                    device.add_spm(spm.next().ok_or(ENODEV)?)?;
                }
            }
        }
        Ok(devices)
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        // Core mm must not call into this module when it is gone.
        for device in &self.0 {
            evict::shut_down(device);
        }
    }
}

type Node = Pin<KBox<MiscDeviceRegistration<File>>>;

/// Makes a device node. It can be opened at once.
fn register(device: &Arc<Device>) -> Result<Node> {
    let options = MiscDeviceOptions {
        name: device.name(),
    };
    KBox::pin_init(
        MiscDeviceRegistration::register(options, device.clone()),
        GFP_KERNEL,
    )
}

/// A platform driver without devices. It has the same name as one of `test_hmm`, so that only one
/// of the modules, which make the same nodes, can be loaded.
struct Exclusion;

impl platform::Driver for Exclusion {
    type IdInfo = ();
    type Data<'bound> = Self;

    fn probe<'bound>(
        _dev: &'bound platform::Device<Core<'_>>,
        _info: Option<&'bound ()>,
    ) -> impl PinInit<Self, Error> + 'bound {
        Err::<Self, _>(ENODEV)
    }
}

type ExclusionRegistration = driver::Registration<platform::Adapter<Exclusion>>;

// Dropped in this order: nobody can open a node any more when the devices go.
struct TestHmm {
    _nodes: KVec<Node>,
    _devices: Devices,
    _exclusion: Pin<KBox<ExclusionRegistration>>,
}

impl kernel::Module for TestHmm {
    fn init(module: &'static ThisModule) -> Result<Self> {
        let exclusion = KBox::pin_init(
            ExclusionRegistration::new(c"hmm_dmirror", module),
            GFP_KERNEL,
        )
        .inspect_err(|&error| {
            if error == EBUSY {
                pr_err!("test_hmm is loaded, and has the device nodes\n");
            }
        })?;
        let devices = Devices::new(Plan::from_params()?)?;
        let mut nodes = KVec::with_capacity(devices.0.len(), GFP_KERNEL)?;
        for device in &devices.0 {
            match register(device) {
                Ok(node) => nodes.push_within_capacity(node)?,
                // An earlier node may be open already, and the module must not go then.
                Err(error) if !nodes.is_empty() => {
                    pr_err!(
                        "{}: cannot make the device node: {error:?}\n",
                        device.name()
                    );
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            _nodes: nodes,
            _devices: devices,
            _exclusion: exclusion,
        })
    }
}
