// SPDX-License-Identifier: GPL-2.0
//! RDMA: memory that is registered with a device is pinned for the long term, and others can
//! read and write it. The device is soft-RoCE's of the loopback device.

use std::ffi::{CStr, c_int, c_uint};
use std::net::Ipv4Addr;
use std::ptr::{self, NonNull};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::failure::{Context, Result, skip};
use crate::pages::Pages;
use crate::{ensure_eq, fail};

mod verbs;

use verbs::{
    Address, Capabilities, Completion, DeviceContext, Gid, MemoryRegion, Opaque, Piece,
    QueuePairAttributes, QueuePairInit, SendRequest, Unusable, Verbs, access, mask, state,
};

/// The one that soft-RoCE's devices have.
const PORT: u8 = 1;
/// How many of a port's addresses are looked at.
const GIDS: u8 = 8;
/// Any number that both ends agree about.
const FIRST_PACKET: u32 = 0;
/// 4 microseconds, doubled that often, until a packet is sent again: no packet is lost here, but
/// debug kernels are slow.
const TIMEOUT: u8 = 20;
const RETRIES: u8 = 7;
/// How many reads of its peer's a queue pair has at once.
const READS: u8 = 1;
/// How long a transfer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// An open device.
pub struct Adapter {
    verbs: &'static Verbs,
    context: NonNull<DeviceContext>,
    domain: NonNull<Opaque>,
    /// Which of its addresses is that of the loopback device.
    gid_index: u8,
}

impl Adapter {
    /// Opens the device; skips the test if there is none, or no library for it.
    pub fn open() -> Result<Self> {
        let verbs = match verbs::verbs() {
            Ok(verbs) => verbs,
            Err(Unusable::Missing(error)) => return skip(format!("no RDMA: {error}")),
            Err(Unusable::Other(error)) => fail!("libibverbs: {error}"),
        };
        let Some((context, gid_index)) = open_context(verbs)? else {
            return skip("no RDMA device of the loopback device: CONFIG_RDMA_RXE, `rdma link add`");
        };
        // SAFETY: The context is open.
        let domain = unsafe { (verbs.ibv_alloc_pd)(context.as_ptr()) };
        let Some(domain) = NonNull::new(domain) else {
            let errno = Errno::last();
            close(verbs, context);
            return Err(errno).context("ibv_alloc_pd");
        };
        Ok(Self { verbs, context, domain, gid_index })
    }

    /// Registers pages, for this process and the queue pairs' peers to read and write.
    pub fn register(&self, pages: Pages) -> Result<Region<'_>, Errno> {
        let access = access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_READ;
        let addr = ptr::with_exposed_provenance_mut(pages.addr);
        // SAFETY: The kernel has references to the pages, whatever becomes of the addresses, and
        // no reference to such memory ever exists.
        let region =
            unsafe { (self.verbs.ibv_reg_mr)(self.domain.as_ptr(), addr, pages.bytes(), access) };
        let region = NonNull::new(region).ok_or_else(Errno::last)?;
        Ok(Region { adapter: self, region, pages })
    }

    /// Makes a queue pair, which is to be connected.
    pub fn queue_pair(&self) -> Result<QueuePair<'_>> {
        let (context, no_channel) = (self.context.as_ptr(), ptr::null_mut());
        // SAFETY: The context is open, and there is no channel.
        let completions =
            unsafe { (self.verbs.ibv_create_cq)(context, 1, ptr::null_mut(), no_channel, 0) };
        let completions = NonNull::new(completions).ok_or_else(Errno::last);
        let completions = completions.context("ibv_create_cq")?;
        let mut init = QueuePairInit {
            qp_context: ptr::null_mut(),
            send_cq: completions.as_ptr(),
            recv_cq: completions.as_ptr(),
            srq: ptr::null_mut(),
            cap: Capabilities {
                max_send_wr: 1,
                max_recv_wr: 1,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: 0,
            },
            qp_type: verbs::RELIABLE,
            sq_sig_all: 0,
        };
        // SAFETY: The domain and the completion queue are of the same device.
        let pair = unsafe { (self.verbs.ibv_create_qp)(self.domain.as_ptr(), &mut init) };
        match NonNull::new(pair) {
            Some(pair) => Ok(QueuePair { adapter: self, completions, pair }),
            None => {
                let errno = Errno::last();
                // SAFETY: No queue pair has it.
                let ret = unsafe { (self.verbs.ibv_destroy_cq)(completions.as_ptr()) };
                assert_eq!(ret, 0, "ibv_destroy_cq");
                Err(errno).context("ibv_create_qp")
            }
        }
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        // SAFETY: What was made of it has borrowed this.
        let ret = unsafe { (self.verbs.ibv_dealloc_pd)(self.domain.as_ptr()) };
        assert!(ret == 0 || thread::panicking(), "ibv_dealloc_pd: {ret}");
        close(self.verbs, self.context);
    }
}

/// Opens the device that has the loopback device's address, and tells which of its addresses.
fn open_context(verbs: &Verbs) -> Result<Option<(NonNull<DeviceContext>, u8)>> {
    let mut count = 0;
    // SAFETY: It sets the number.
    let list = unsafe { (verbs.ibv_get_device_list)(&mut count) };
    if list.is_null() {
        return match Errno::last() {
            // No kernel module has been there.
            Errno::ENOSYS => Ok(None),
            errno => Err(errno).context("ibv_get_device_list"),
        };
    }
    // SAFETY: There are so many in the list.
    let devices = unsafe { std::slice::from_raw_parts(list, usize::try_from(count)?) };
    let found = devices.iter().find_map(|&device| open_loopback(verbs, device).transpose());
    // SAFETY: Open devices do without it.
    unsafe { (verbs.ibv_free_device_list)(list) };
    found.transpose()
}

/// Opens a device of the list if it has the loopback device's address.
fn open_loopback(
    verbs: &Verbs,
    device: *mut Opaque,
) -> Result<Option<(NonNull<DeviceContext>, u8)>> {
    // SAFETY: Devices of the list are valid until it is freed.
    let context = NonNull::new(unsafe { (verbs.ibv_open_device)(device) });
    let context = context.ok_or_else(Errno::last).context("ibv_open_device")?;
    let index = (0..GIDS).find(|&index| gid(verbs, context, index) == Some(loopback()));
    if index.is_none() {
        close(verbs, context);
    }
    Ok(index.map(|index| (context, index)))
}

/// An address of a device's port.
fn gid(verbs: &Verbs, context: NonNull<DeviceContext>, index: u8) -> Option<Gid> {
    let mut gid = Gid::default();
    // SAFETY: The context is open, and it sets the GID.
    let ret = unsafe { (verbs.ibv_query_gid)(context.as_ptr(), PORT, index.into(), &mut gid) };
    (ret == 0).then_some(gid)
}

/// The loopback device's address, as RDMA has it.
fn loopback() -> Gid {
    Gid(Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets())
}

fn close(verbs: &Verbs, context: NonNull<DeviceContext>) {
    // SAFETY: The caller has opened it, and does not use it any more.
    let ret = unsafe { (verbs.ibv_close_device)(context.as_ptr()) };
    assert_eq!(ret, 0, "ibv_close_device");
}

/// Pages that are pinned until it is dropped.
pub struct Region<'a> {
    adapter: &'a Adapter,
    region: NonNull<MemoryRegion>,
    pages: Pages,
}

impl Region<'_> {
    /// What another process accesses them by.
    pub fn remote(&self) -> Remote {
        Remote { addr: self.pages.addr as u64, key: self.registered().rkey }
    }

    fn registered(&self) -> &MemoryRegion {
        // SAFETY: Nobody changes it until it is deregistered.
        unsafe { self.region.as_ref() }
    }
}

impl Drop for Region<'_> {
    fn drop(&mut self) {
        // SAFETY: It is registered until now.
        let ret = unsafe { (self.adapter.verbs.ibv_dereg_mr)(self.region.as_ptr()) };
        assert!(ret == 0 || thread::panicking(), "ibv_dereg_mr: {ret}");
    }
}

/// Registered memory of another process.
#[derive(Clone, Copy, Debug)]
pub struct Remote {
    /// Its address there.
    pub addr: u64,
    /// The key that its owner has been given.
    pub key: u32,
}

/// One end of a connection.
pub struct QueuePair<'a> {
    adapter: &'a Adapter,
    completions: NonNull<Opaque>,
    pair: NonNull<verbs::QueuePair>,
}

impl QueuePair<'_> {
    /// What its peer connects to.
    pub fn number(&self) -> u32 {
        // SAFETY: Nobody changes it.
        unsafe { self.pair.as_ref() }.qp_num
    }

    /// Connects it to a queue pair of the same device, which has to do so as well.
    pub fn connect(&self, peer: u32) -> Result {
        self.modify(
            QueuePairAttributes {
                qp_state: state::INIT,
                qp_access_flags: access::REMOTE_WRITE | access::REMOTE_READ,
                port_num: PORT,
                ..Default::default()
            },
            mask::ACCESS_FLAGS | mask::PKEY_INDEX | mask::PORT,
        )?;
        self.modify(
            QueuePairAttributes {
                qp_state: state::READY_TO_RECEIVE,
                path_mtu: verbs::MTU_4096,
                rq_psn: FIRST_PACKET,
                dest_qp_num: peer,
                ah_attr: Address {
                    dgid: loopback(),
                    sgid_index: self.adapter.gid_index,
                    hop_limit: 1,
                    is_global: 1,
                    port_num: PORT,
                    ..Default::default()
                },
                max_dest_rd_atomic: READS,
                ..Default::default()
            },
            mask::AV
                | mask::PATH_MTU
                | mask::DEST_QPN
                | mask::RQ_PSN
                | mask::MAX_DEST_RD_ATOMIC
                | mask::MIN_RNR_TIMER,
        )?;
        self.modify(
            QueuePairAttributes {
                qp_state: state::READY_TO_SEND,
                sq_psn: FIRST_PACKET,
                max_rd_atomic: READS,
                timeout: TIMEOUT,
                retry_cnt: RETRIES,
                rnr_retry: RETRIES,
                ..Default::default()
            },
            mask::TIMEOUT
                | mask::RETRY_CNT
                | mask::RNR_RETRY
                | mask::SQ_PSN
                | mask::MAX_QP_RD_ATOMIC,
        )
    }

    fn modify(&self, mut attributes: QueuePairAttributes, mask: c_int) -> Result {
        let (pair, mask) = (self.pair.as_ptr(), mask | mask::STATE);
        // SAFETY: The mask says what is set.
        let ret = unsafe { (self.adapter.verbs.ibv_modify_qp)(pair, &mut attributes, mask) };
        match ret {
            0 => Ok(()),
            errno => Err(Errno::from_raw(errno))
                .context(format!("ibv_modify_qp to state {}", attributes.qp_state)),
        }
    }

    /// Writes all of a region to as many pages of the peer's process.
    pub fn write(&self, region: &Region, to: Remote) -> Result {
        self.transfer(verbs::RDMA_WRITE, region, to).context("RDMA write")
    }

    /// Fills all of a region with as many pages of the peer's process.
    pub fn read(&self, region: &Region, from: Remote) -> Result {
        self.transfer(verbs::RDMA_READ, region, from).context("RDMA read")
    }

    fn transfer(&self, opcode: c_uint, region: &Region, remote: Remote) -> Result {
        let mut piece = Piece {
            addr: region.pages.addr as u64,
            length: u32::try_from(region.pages.bytes())?,
            lkey: region.registered().lkey,
        };
        let mut request = SendRequest {
            wr_id: 0,
            next: ptr::null_mut(),
            sg_list: &mut piece,
            num_sge: 1,
            opcode,
            send_flags: verbs::SIGNALED,
            imm_data: 0,
            remote_addr: remote.addr,
            rkey: remote.key,
            unused: [0; 9],
        };
        let mut refused = ptr::null_mut();
        let post = self.context().post_send;
        // SAFETY: The kernel has the region's pages until it is deregistered, and the request is
        // copied.
        let ret = unsafe { post(self.pair.as_ptr(), &mut request, &mut refused) };
        ensure_eq!(ret, 0, "ibv_post_send");
        self.wait()
    }

    /// Waits for the only transfer.
    fn wait(&self) -> Result {
        let mut completion = Completion::default();
        let poll = self.context().poll_cq;
        let end = Instant::now() + PATIENCE;
        loop {
            // SAFETY: There is room for one.
            match unsafe { poll(self.completions.as_ptr(), 1, &mut completion) } {
                0 if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
                0 => fail!("it does not complete"),
                1 if completion.status == 0 => return Ok(()),
                1 => fail!("{}", self.describe(completion.status)),
                count => fail!("ibv_poll_cq returns {count}"),
            }
        }
    }

    fn context(&self) -> &DeviceContext {
        // SAFETY: It stays as it is while it is open.
        unsafe { self.adapter.context.as_ref() }
    }

    fn describe(&self, status: c_uint) -> String {
        // SAFETY: It takes any number.
        let text = unsafe { (self.adapter.verbs.ibv_wc_status_str)(status) };
        // SAFETY: What it returns is constant.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

impl Drop for QueuePair<'_> {
    fn drop(&mut self) {
        // SAFETY: It is there until now.
        let ret = unsafe { (self.adapter.verbs.ibv_destroy_qp)(self.pair.as_ptr()) };
        assert!(ret == 0 || thread::panicking(), "ibv_destroy_qp: {ret}");
        // SAFETY: No queue pair has it any more.
        let ret = unsafe { (self.adapter.verbs.ibv_destroy_cq)(self.completions.as_ptr()) };
        assert!(ret == 0 || thread::panicking(), "ibv_destroy_cq: {ret}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;
    use crate::memory::Mapping;

    #[test]
    fn what_is_written_is_read() {
        let adapter = match Adapter::open() {
            Ok(adapter) => adapter,
            // Few machines have one.
            Err(Failure::Skipped(reason)) => return eprintln!("skipped: {reason}"),
            Err(failure) => panic!("{failure}"),
        };
        let (near, far) = (adapter.queue_pair().unwrap(), adapter.queue_pair().unwrap());
        near.connect(far.number()).unwrap();
        far.connect(near.number()).unwrap();
        let (here, there) = (Mapping::small(4).unwrap(), Mapping::small(4).unwrap());
        let region = adapter.register(here.all()).unwrap();
        let other = adapter.register(there.all()).unwrap();
        here.fill(0..4, 1);
        near.write(&region, other.remote()).unwrap();
        there.check(0..4, 1).unwrap();
        there.fill(0..4, 2);
        near.read(&region, other.remote()).unwrap();
        here.check(0..4, 2).unwrap();
        let stale = other.remote();
        drop(other);
        let failure = near.read(&region, stale).unwrap_err().to_string();
        assert!(failure.contains("remote access error"), "{failure}");
    }
}
