// SPDX-License-Identifier: GPL-2.0
//! Makes failing sequences short.

use crate::model::operation::Operation;

/// Finds a short subsequence that still fails, by leaving out ever smaller parts, and
/// then makes the ranges of what is left small. Asks `fails` until that returns `None`,
/// out of time.
pub fn shrink(
    operations: &[Operation],
    mut fails: impl FnMut(&[Operation]) -> Option<bool>,
) -> Vec<Operation> {
    let mut best = operations.to_vec();
    // Each returns `None` when out of time, with `best` as far as it came.
    let _ = leave_out(&mut best, &mut fails).and_then(|()| narrow(&mut best, &mut fails));
    best
}

fn leave_out(
    best: &mut Vec<Operation>,
    fails: &mut impl FnMut(&[Operation]) -> Option<bool>,
) -> Option<()> {
    let mut size = best.len().div_ceil(2);
    while size > 0 {
        let mut left_out = false;
        // From the end: what came last is least likely to be needed by the rest.
        let mut end = best.len();
        while end > 0 {
            let start = end.saturating_sub(size);
            let mut candidate = best.clone();
            candidate.drain(start..end);
            if !candidate.is_empty() && fails(&candidate)? {
                *best = candidate;
                left_out = true;
            }
            end = start;
        }
        if size == 1 && !left_out {
            break;
        }
        size = if size > 1 { size / 2 } else { 1 };
    }
    Some(())
}

fn narrow(
    best: &mut [Operation],
    fails: &mut impl FnMut(&[Operation]) -> Option<bool>,
) -> Option<()> {
    for index in 0..best.len() {
        while best[index].range.len() > 1 {
            let whole = best[index].range.clone();
            let middle = whole.start + whole.len() / 2;
            let mut narrower = false;
            for half in [whole.start..middle, middle..whole.end] {
                best[index].range = half;
                if fails(best)? {
                    narrower = true;
                    break;
                }
                best[index].range = whole.clone();
            }
            if !narrower {
                break;
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::operation::Kind;

    fn operation(kind: Kind, start: usize, end: usize) -> Operation {
        Operation { kind, device: 0, range: start..end, to: 0 }
    }

    /// Fails if page 5 is migrated and later the device is released.
    fn fails(operations: &[Operation]) -> bool {
        let migrated =
            operations.iter().position(|o| o.kind == Kind::ToDevice && o.range.contains(&5));
        let released = operations.iter().rposition(|o| o.kind == Kind::Release);
        matches!((migrated, released), (Some(migrated), Some(released)) if migrated < released)
    }

    fn long() -> Vec<Operation> {
        let mut operations = vec![operation(Kind::CpuWrite, 0, 3); 100];
        operations[20] = operation(Kind::ToDevice, 2, 9);
        operations[30] = operation(Kind::ToDevice, 0, 32);
        operations[77] = operation(Kind::Release, 0, 1);
        operations
    }

    #[test]
    fn finds_what_is_needed() {
        let mut runs = 0;
        let short = shrink(&long(), |operations| {
            runs += 1;
            Some(fails(operations))
        });
        assert_eq!(short, [operation(Kind::ToDevice, 5, 6), operation(Kind::Release, 0, 1)]);
        assert!(runs < 100, "{runs} runs");
    }

    #[test]
    fn out_of_time() {
        let mut left = 5;
        let short = shrink(&long(), |operations| {
            left -= 1;
            (left > 0).then(|| fails(operations))
        });
        assert!(fails(&short) && short.len() < 100);
    }
}
