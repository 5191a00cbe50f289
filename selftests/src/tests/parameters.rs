// SPDX-License-Identifier: GPL-2.0
//! Parameters of the drivers, good and bad. A driver that is refused leaves nothing behind,
//! and says why.

use nix::errno::Errno;

use super::support::{migrate, migrate_back};
use super::{Context, Exception, Test};
use crate::device::{Devices, Driver};
use crate::failure::{Failure, Result, skip};
use crate::kernel_log::KernelLog;
use crate::memory::Mapping;
use crate::module::Module;
use crate::pages::PAGE_SIZE;
use crate::uapi::MemoryType::{self, Coherent, Generic, Private};
use crate::{ensure, ensure_eq, ensure_errno, iomem, pagemap, test};

/// The group's tests.
pub const TESTS: &[Test] = &[
    test!(addresses).only(SPM).except(UNPATCHED),
    test!(unused_addresses).only(&[Private]).except(UNPATCHED),
    test!(one_address).except(UNPATCHED),
    test!(no_type).only(SPM).except(UNPATCHED),
    test!(unaligned_address).only(SPM).except(UNPATCHED),
    test!(address_of_system_ram).only(SPM).except(UNPATCHED),
    test!(same_address_twice).only(SPM).except(UNPATCHED),
    test!(no_number).except(UNPATCHED),
    test!(unknown_type).except(UNPATCHED),
    test!(other_driver_loaded).except(UNPATCHED),
];

/// Types whose memory is where the parameters say.
const SPM: &[MemoryType] = &[Coherent, Generic];
const UNPATCHED: &[Exception] = &[Exception::unpatched("it has no parameter device_type")];

/// What a device takes of special-purpose memory.
const SIZE: u64 = 256 << 20;

/// What the system has of the driver.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    is_loaded: bool,
    nodes: usize,
    iomem: Vec<iomem::Region>,
}

impl Traces {
    fn find(ctx: &Context, module: &Module) -> Result<Self> {
        let nodes = ctx.all_nodes.iter().filter(|node| node.exists()).count();
        Ok(Self { is_loaded: module.is_loaded(), nodes, iomem: iomem::regions()? })
    }
}

/// Does something while the driver is unloaded, or loaded in another way. In the end it is loaded
/// as it was, and works.
fn without_driver(ctx: &Context, act: impl FnOnce(&Module) -> Result) -> Result {
    let module = ctx.module()?;
    module.unload_when_unused()?;
    let result = act(&module);
    if module.is_loaded() {
        module.unload_when_unused()?;
    }
    let loaded = module.load();
    result?;
    loaded?;
    use_devices(ctx)?;
    Ok(())
}

/// The driver's memory as it is loaded now: two addresses that are good.
fn good_addresses() -> Result<[u64; 2]> {
    let regions = iomem::device_regions()?;
    match regions.as_slice() {
        [a, b] if [a, b].iter().all(|r| r.range.end - r.range.start == SIZE) => {
            Ok([a.range.start, b.range.start])
        }
        _ => skip(format!("not two devices of {} MB: {regions:x?}", SIZE >> 20)),
    }
}

/// The parameters for devices of the test's type at these addresses.
fn at(ctx: &Context, addresses: [u64; 2]) -> [String; 3] {
    let [dev0, dev1] = addresses;
    [
        format!("device_type={}", ctx.memory_type),
        format!("spm_addr_dev0={dev0:#x}"),
        format!("spm_addr_dev1={dev1:#x}"),
    ]
}

/// Pages can be migrated to both devices and back. Returns the address of the first one on each,
/// if the CPU maps it there.
fn use_devices(ctx: &Context) -> Result<[u64; 2]> {
    let mut addresses = [0; 2];
    for (number, address) in addresses.iter_mut().enumerate() {
        let device = ctx.device(number)?;
        let mapping = Mapping::small(2)?;
        mapping.fill(0..2, 1);
        migrate(&device, &mapping, 0..2, 1)?;
        let entry = pagemap::entries(mapping.all())?[0];
        if entry.is_present() {
            *address = entry.pfn() * PAGE_SIZE as u64;
        }
        migrate_back(&device, mapping.all(), 2)?;
        mapping.check(0..2, 1)?;
    }
    Ok(addresses)
}

/// The driver is refused with these parameters and says so, and nothing is left of it.
fn ensure_refused<const N: usize>(
    ctx: &Context,
    parameters: [String; N],
    errno: Errno,
    message: &str,
) -> Result {
    without_driver(ctx, |good| {
        let bad = good.with(parameters);
        let before = Traces::find(ctx, &bad)?;
        ensure_eq!((before.is_loaded, before.nodes), (false, 0));
        let mut log = open_log()?;
        ensure_errno!(bad.file()?.load(), errno);
        ensure_said(&mut log, &bad, message)?;
        ensure_eq!(Traces::find(ctx, &bad)?, before, "{bad}");
        Ok(())
    })
}

fn open_log() -> Result<KernelLog> {
    KernelLog::open().ok_or_else(|| Failure::failed("the kernel's log cannot be read"))
}

/// A line of the module in the log begins with the message.
fn ensure_said(log: &mut KernelLog, module: &Module, message: &str) -> Result {
    let lines = log.lines();
    let expected = format!("{}: {message}", module.name());
    ensure!(lines.iter().any(|line| line.starts_with(&expected)), "{expected}: {lines:#?}");
    Ok(())
}

/// Each device has the memory at its own address. The driver in Rust, which finds the same, would
/// take it in the other order.
pub fn addresses(ctx: &mut Context) -> Result {
    let [a, b] = good_addresses()?;
    for expected in [[b, a], [a, b]] {
        without_driver(ctx, |module| {
            module.with(at(ctx, expected)).load()?;
            let found = use_devices(ctx)?;
            let is_within = |(found, start): (&u64, &u64)| (*start..start + SIZE).contains(found);
            ensure!(found.iter().zip(&expected).all(is_within), "{found:x?} for {expected:x?}");
            let claimed: Vec<_> = iomem::device_regions()?.into_iter().map(|r| r.range).collect();
            ensure_eq!(claimed, [a..a + SIZE, b..b + SIZE]);
            Ok(())
        })?;
    }
    Ok(())
}

/// Devices of private memory can be loaded with any addresses.
pub fn unused_addresses(ctx: &mut Context) -> Result {
    ensure_accepted(ctx, at(ctx, [1, 1]))
}

/// The driver can be loaded with these parameters, and used.
fn ensure_accepted<const N: usize>(ctx: &Context, parameters: [String; N]) -> Result {
    without_driver(ctx, |module| {
        module.with(parameters).load()?;
        use_devices(ctx)?;
        Ok(())
    })
}

/// One address is as good as none for the driver in C; that in Rust looks for memory if there is
/// none, and takes one for a mistake.
pub fn one_address(ctx: &mut Context) -> Result {
    for addresses in [[0x1_0000_0000, 0], [0, 0x1_0000_0000]] {
        let parameters = at(ctx, addresses);
        let (errno, message) = match (ctx.driver, ctx.memory_type) {
            (Driver::Rust, _) => {
                let message = "set both spm_addr_dev0 and spm_addr_dev1, or none of them";
                (Errno::EINVAL, message.to_owned())
            }
            (_, Private) => {
                ensure_accepted(ctx, parameters)?;
                continue;
            }
            (_, t) => (Errno::ENODEV, format!("device_type={t} needs special-purpose memory: ")),
        };
        ensure_refused(ctx, parameters, errno, &message)?;
    }
    Ok(())
}

/// Without a type, the addresses are for coherent devices. Without both, the driver in Rust makes
/// the devices of all types for which it finds memory, that in C needs addresses.
pub fn no_type(ctx: &mut Context) -> Result {
    let [_, dev0, dev1] = at(ctx, good_addresses()?);
    without_driver(ctx, |module| {
        module.with([dev0, dev1]).load()?;
        ensure_eq!(types(ctx)?, [Private, Coherent]);
        Ok(())
    })?;
    without_driver(ctx, |module| {
        module.with([]).load()?;
        let all = if ctx.driver == Driver::Rust { MemoryType::ALL } else { &[Private] };
        ensure_eq!(types(ctx)?, all);
        Ok(())
    })
}

/// Types of the devices that there are.
fn types(ctx: &Context) -> Result<Vec<MemoryType>> {
    let folder = ctx.nodes[0].parent().expect("a folder");
    let devices = Devices::find(folder).map_err(Failure::failed)?;
    Ok(MemoryType::ALL.iter().copied().filter(|&t| devices.nodes(t).is_some()).collect())
}

/// Memory begins with a whole huge page.
pub fn unaligned_address(ctx: &mut Context) -> Result {
    let [a, b] = good_addresses()?;
    for addresses in [[a + PAGE_SIZE as u64, b], [a, b + 1]] {
        let message = "spm_addr_dev0 and spm_addr_dev1 must be multiples of 0x200000";
        ensure_refused(ctx, at(ctx, addresses), Errno::EINVAL, message)?;
    }
    Ok(())
}

/// What is somebody's already is not given to a device. The driver in Rust also refuses what
/// firmware has not listed, so it has not come as far as making the first device.
pub fn address_of_system_ram(ctx: &mut Context) -> Result {
    let [a, _] = good_addresses()?;
    let ram = system_ram()?;
    let (errno, message) = match ctx.driver {
        Driver::Rust => {
            let message = format!("there are no 256 MB of special-purpose memory at {ram:#x}");
            (Errno::EINVAL, message)
        }
        _ => (Errno::EBUSY, second_fails(ctx)),
    };
    ensure_refused(ctx, at(ctx, [a, ram]), errno, &message)
}

/// Address of system memory that one could take for a device's.
fn system_ram() -> Result<u64> {
    for region in iomem::regions()? {
        let start = region.range.start.next_multiple_of(SIZE);
        if region.name == "System RAM" && start + SIZE <= region.range.end {
            return Ok(start);
        }
    }
    skip(format!("no {} MB of system memory", SIZE >> 20))
}

/// What the driver in C says when memory of the second device is somebody's.
fn second_fails(ctx: &Context) -> String {
    let name = ctx.nodes[1].to_string_lossy();
    let number = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    format!("cannot make {} device {number}: error -16", ctx.memory_type)
}

/// Two devices do not share memory, nor a part of it.
pub fn same_address_twice(ctx: &mut Context) -> Result {
    let [a, b] = good_addresses()?;
    for addresses in [[a, a], [a, a + SIZE / 2], [b, b - SIZE / 2]] {
        let message = match ctx.driver {
            Driver::Rust => {
                let name = ctx.nodes[1].file_name().expect("a name").to_string_lossy();
                let address = addresses[1];
                format!("{name}: cannot take 256 MB of memory at {address:#x}")
            }
            _ => second_fails(ctx),
        };
        ensure_refused(ctx, at(ctx, addresses), Errno::EBUSY, &message)?;
    }
    Ok(())
}

/// The kernel reads numbers before the driver begins.
pub fn no_number(ctx: &mut Context) -> Result {
    let parameters = ["spm_addr_dev0=here".to_owned()];
    ensure_refused(ctx, parameters, Errno::EINVAL, "`here' invalid for parameter `spm_addr_dev0'")
}

/// Types have one name each.
pub fn unknown_type(ctx: &mut Context) -> Result {
    for name in ["Generic", "gener", "genericc"] {
        let message = format!("unknown device_type={name}, use private, coherent or generic");
        ensure_refused(ctx, [format!("device_type={name}")], Errno::EINVAL, &message)?;
    }
    Ok(())
}

/// The drivers have the same nodes: the second is refused, and the first does not notice.
pub fn other_driver_loaded(ctx: &mut Context) -> Result {
    let module = ctx.module()?;
    let other = if ctx.driver == Driver::Rust { Driver::C } else { Driver::Rust };
    let other: Module = format!("{other} device_type=private").parse().map_err(Failure::failed)?;
    let Ok(file) = other.file() else {
        return skip(format!("there is no module {}", other.name()));
    };
    let before = [Traces::find(ctx, &module)?, Traces::find(ctx, &other)?];
    let mut log = open_log()?;
    ensure_errno!(file.load(), Errno::EBUSY);
    let message = format!("{} is loaded, and has the device nodes", module.name());
    ensure_said(&mut log, &other, &message)?;
    ensure_eq!([Traces::find(ctx, &module)?, Traces::find(ctx, &other)?], before);
    use_devices(ctx)?;
    Ok(())
}
