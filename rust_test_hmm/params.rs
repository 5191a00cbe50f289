// SPDX-License-Identifier: GPL-2.0

//! What the module parameters mean.

use crate::memory_types::DeviceType;
use kernel::prelude::*;

/// Parses `device_type`. An empty string, `None`, is for all types.
///
/// Returns [`EINVAL`] if there is no such type.
pub(crate) fn device_type(name: &[u8]) -> Result<Option<DeviceType>> {
    if name.is_empty() {
        return Ok(None);
    }
    DeviceType::ALL
        .into_iter()
        .find(|device_type| device_type.name().as_bytes() == name)
        .map(Some)
        .ok_or(EINVAL)
}

/// Parses `spm_addr_dev0` and `spm_addr_dev1`. If none is set, `None`, special-purpose memory is
/// looked for.
///
/// Returns [`EINVAL`] if only one is set.
pub(crate) fn spm_addrs(dev0: u64, dev1: u64) -> Result<Option<[u64; 2]>> {
    match (dev0, dev1) {
        (0, 0) => Ok(None),
        (0, _) | (_, 0) => Err(EINVAL),
        addrs => Ok(Some(addrs.into())),
    }
}

#[cfg(CONFIG_TEST_HMM_RS_KUNIT_TEST)]
#[kunit_tests(test_hmm_rs_params)]
mod tests {
    use super::*;

    #[test]
    fn device_types() {
        assert_eq!(device_type(b""), Ok(None));
        assert_eq!(device_type(b"private"), Ok(Some(DeviceType::Private)));
        assert_eq!(device_type(b"coherent"), Ok(Some(DeviceType::Coherent)));
        assert_eq!(device_type(b"generic"), Ok(Some(DeviceType::Generic)));
        assert_eq!(device_type(b"Generic"), Err(EINVAL));
        assert_eq!(device_type(b"generic "), Err(EINVAL));
        assert_eq!(device_type(b"gen"), Err(EINVAL));
    }

    #[test]
    fn addrs() {
        assert_eq!(spm_addrs(0, 0), Ok(None));
        assert_eq!(spm_addrs(1, 2), Ok(Some([1, 2])));
        assert_eq!(spm_addrs(1, 0), Err(EINVAL));
        assert_eq!(spm_addrs(0, 2), Err(EINVAL));
    }
}
