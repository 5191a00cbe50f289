// SPDX-License-Identifier: GPL-2.0
//! What is used here of `libibverbs`, as its `verbs.h` has it. It is loaded when it is needed:
//! this program starts without it.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::Library;

const NAME: &str = "libibverbs.so.1";

/// `enum ibv_access_flags`
pub mod access {
    use std::ffi::c_int;

    pub const LOCAL_WRITE: c_int = 1;
    pub const REMOTE_WRITE: c_int = 1 << 1;
    pub const REMOTE_READ: c_int = 1 << 2;
}

/// `enum ibv_qp_attr_mask`
pub mod mask {
    use std::ffi::c_int;

    pub const STATE: c_int = 1;
    pub const ACCESS_FLAGS: c_int = 1 << 3;
    pub const PKEY_INDEX: c_int = 1 << 4;
    pub const PORT: c_int = 1 << 5;
    pub const AV: c_int = 1 << 7;
    pub const PATH_MTU: c_int = 1 << 8;
    pub const TIMEOUT: c_int = 1 << 9;
    pub const RETRY_CNT: c_int = 1 << 10;
    pub const RNR_RETRY: c_int = 1 << 11;
    pub const RQ_PSN: c_int = 1 << 12;
    pub const MAX_QP_RD_ATOMIC: c_int = 1 << 13;
    pub const MIN_RNR_TIMER: c_int = 1 << 15;
    pub const SQ_PSN: c_int = 1 << 16;
    pub const MAX_DEST_RD_ATOMIC: c_int = 1 << 17;
    pub const DEST_QPN: c_int = 1 << 20;
}

/// `enum ibv_qp_state`
pub mod state {
    use std::ffi::c_uint;

    pub const INIT: c_uint = 1;
    pub const READY_TO_RECEIVE: c_uint = 2;
    pub const READY_TO_SEND: c_uint = 3;
}

/// `IBV_QPT_RC`: reliable and connected.
pub const RELIABLE: c_uint = 2;
/// `IBV_WR_RDMA_WRITE`
pub const RDMA_WRITE: c_uint = 0;
/// `IBV_WR_RDMA_READ`
pub const RDMA_READ: c_uint = 4;
/// `IBV_SEND_SIGNALED`
pub const SIGNALED: c_uint = 1 << 1;
/// `IBV_MTU_4096`
pub const MTU_4096: c_uint = 5;

/// `struct ibv_device`, `ibv_pd` and `ibv_cq`, of which the address is all that is used.
#[repr(C)]
pub struct Opaque([u8; 0]);

/// `struct ibv_context`: so much of it as has functions that are inline in C.
#[repr(C)]
pub struct DeviceContext {
    device: *mut Opaque,
    unused: [usize; 11],
    pub poll_cq: unsafe extern "C" fn(*mut Opaque, c_int, *mut Completion) -> c_int,
    more_unused: [usize; 13],
    pub post_send:
        unsafe extern "C" fn(*mut QueuePair, *mut SendRequest, *mut *mut SendRequest) -> c_int,
}

/// `struct ibv_mr`
#[repr(C)]
pub struct MemoryRegion {
    context: *mut DeviceContext,
    pd: *mut Opaque,
    addr: *mut c_void,
    length: usize,
    handle: u32,
    pub lkey: u32,
    pub rkey: u32,
}

/// The beginning of `struct ibv_qp`.
#[repr(C)]
pub struct QueuePair {
    context: *mut DeviceContext,
    qp_context: *mut c_void,
    pd: *mut Opaque,
    send_cq: *mut Opaque,
    recv_cq: *mut Opaque,
    srq: *mut Opaque,
    handle: u32,
    pub qp_num: u32,
}

/// `struct ibv_qp_cap`
#[repr(C)]
#[derive(Default)]
pub struct Capabilities {
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
}

/// `struct ibv_qp_init_attr`
#[repr(C)]
pub struct QueuePairInit {
    pub qp_context: *mut c_void,
    pub send_cq: *mut Opaque,
    pub recv_cq: *mut Opaque,
    pub srq: *mut Opaque,
    pub cap: Capabilities,
    pub qp_type: c_uint,
    pub sq_sig_all: c_int,
}

/// `union ibv_gid`
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gid(pub [u8; 16]);

/// `struct ibv_ah_attr`, with the `struct ibv_global_route` that it begins with.
#[repr(C)]
#[derive(Default)]
pub struct Address {
    pub dgid: Gid,
    pub flow_label: u32,
    pub sgid_index: u8,
    pub hop_limit: u8,
    pub traffic_class: u8,
    pub dlid: u16,
    pub sl: u8,
    pub src_path_bits: u8,
    pub static_rate: u8,
    pub is_global: u8,
    pub port_num: u8,
}

/// `struct ibv_qp_attr`
#[repr(C)]
#[derive(Default)]
pub struct QueuePairAttributes {
    pub qp_state: c_uint,
    pub cur_qp_state: c_uint,
    pub path_mtu: c_uint,
    pub path_mig_state: c_uint,
    pub qkey: u32,
    pub rq_psn: u32,
    pub sq_psn: u32,
    pub dest_qp_num: u32,
    pub qp_access_flags: c_int,
    pub cap: Capabilities,
    pub ah_attr: Address,
    pub alt_ah_attr: Address,
    pub pkey_index: u16,
    pub alt_pkey_index: u16,
    pub en_sqd_async_notify: u8,
    pub sq_draining: u8,
    pub max_rd_atomic: u8,
    pub max_dest_rd_atomic: u8,
    pub min_rnr_timer: u8,
    pub port_num: u8,
    pub timeout: u8,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    pub alt_port_num: u8,
    pub alt_timeout: u8,
    pub rate_limit: u32,
}

/// `struct ibv_sge`
#[repr(C)]
pub struct Piece {
    pub addr: u64,
    pub length: u32,
    pub lkey: u32,
}

/// `struct ibv_send_wr`, with of its unions what RDMA reads and writes have.
#[repr(C)]
pub struct SendRequest {
    pub wr_id: u64,
    pub next: *mut SendRequest,
    pub sg_list: *mut Piece,
    pub num_sge: c_int,
    pub opcode: c_uint,
    pub send_flags: c_uint,
    pub imm_data: u32,
    pub remote_addr: u64,
    pub rkey: u32,
    pub unused: [u64; 9],
}

/// `struct ibv_wc`
#[repr(C)]
#[derive(Default)]
pub struct Completion {
    pub wr_id: u64,
    pub status: c_uint,
    pub opcode: c_uint,
    pub vendor_err: u32,
    pub byte_len: u32,
    pub imm_data: u32,
    pub qp_num: u32,
    pub src_qp: u32,
    pub wc_flags: c_uint,
    pub pkey_index: u16,
    pub slid: u16,
    pub sl: u8,
    pub dlid_path_bits: u8,
}

// As C has them.
const _: () = {
    assert!(size_of::<QueuePairInit>() == 64);
    assert!(size_of::<Address>() == 32);
    assert!(size_of::<QueuePairAttributes>() == 144);
    assert!(size_of::<SendRequest>() == 128);
    assert!(size_of::<Completion>() == 48);
    assert!(std::mem::offset_of!(DeviceContext, poll_cq) == 96);
    assert!(std::mem::offset_of!(DeviceContext, post_send) == 208);
    assert!(std::mem::offset_of!(QueuePair, qp_num) == 52);
    assert!(std::mem::offset_of!(QueuePairAttributes, port_num) == 129);
};

/// Declares [`Verbs`]: functions of the library, by their names.
macro_rules! verbs {
    ($($name:ident: fn($($argument:ty),*) -> $result:ty;)*) => {
        /// The library's functions.
        pub struct Verbs {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> $result,)*
            _library: Library,
        }

        impl Verbs {
            fn load() -> Result<Self, libloading::Error> {
                // SAFETY: It has nothing but harmless constructors.
                let library = unsafe { Library::new(NAME)? };
                Ok(Self {
                    $($name: {
                        // SAFETY: The type is that of `verbs.h`, and the library stays loaded.
                        *unsafe { library.get(concat!(stringify!($name), "\0").as_bytes())? }
                    },)*
                    _library: library,
                })
            }
        }
    };
}

verbs! {
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut Opaque;
    ibv_free_device_list: fn(*mut *mut Opaque) -> ();
    ibv_open_device: fn(*mut Opaque) -> *mut DeviceContext;
    ibv_close_device: fn(*mut DeviceContext) -> c_int;
    ibv_query_gid: fn(*mut DeviceContext, u8, c_int, *mut Gid) -> c_int;
    ibv_alloc_pd: fn(*mut DeviceContext) -> *mut Opaque;
    ibv_dealloc_pd: fn(*mut Opaque) -> c_int;
    ibv_reg_mr: fn(*mut Opaque, *mut c_void, usize, c_int) -> *mut MemoryRegion;
    ibv_dereg_mr: fn(*mut MemoryRegion) -> c_int;
    ibv_create_cq: fn(*mut DeviceContext, c_int, *mut c_void, *mut c_void, c_int) -> *mut Opaque;
    ibv_destroy_cq: fn(*mut Opaque) -> c_int;
    ibv_create_qp: fn(*mut Opaque, *mut QueuePairInit) -> *mut QueuePair;
    ibv_modify_qp: fn(*mut QueuePair, *mut QueuePairAttributes, c_int) -> c_int;
    ibv_destroy_qp: fn(*mut QueuePair) -> c_int;
    ibv_wc_status_str: fn(c_uint) -> *const c_char;
}

/// Why the library cannot be used.
pub enum Unusable {
    /// There is none.
    Missing(String),
    /// It is not as expected.
    Other(String),
}

impl From<libloading::Error> for Unusable {
    fn from(error: libloading::Error) -> Self {
        match error {
            libloading::Error::DlOpen { .. } => Self::Missing(error.to_string()),
            _ => Self::Other(error.to_string()),
        }
    }
}

/// The library.
pub fn verbs() -> Result<&'static Verbs, &'static Unusable> {
    static VERBS: OnceLock<Result<Verbs, Unusable>> = OnceLock::new();
    VERBS.get_or_init(|| Ok(Verbs::load()?)).as_ref()
}
