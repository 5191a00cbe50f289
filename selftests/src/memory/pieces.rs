// SPDX-License-Identifier: GPL-2.0
//! Ranges of numbers, in order, that do not overlap.

use std::ops::Range;

/// `pieces` without `range`.
pub fn without(pieces: &[Range<usize>], range: &Range<usize>) -> Vec<Range<usize>> {
    pieces
        .iter()
        .flat_map(|piece| {
            [piece.start..piece.end.min(range.start), piece.start.max(range.end)..piece.end]
        })
        .filter(|piece| !piece.is_empty())
        .collect()
}

/// `pieces` and `range`; what touches is one piece.
pub fn with(pieces: &[Range<usize>], range: &Range<usize>) -> Vec<Range<usize>> {
    let mut all = without(pieces, range);
    all.push(range.clone());
    all.sort_by_key(|piece| piece.start);
    all.dedup_by(|next, piece| {
        let touches = piece.end == next.start;
        if touches {
            piece.end = next.end;
        }
        touches
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_part() {
        let pieces = [0..4, 6..10];
        assert_eq!(without(&pieces, &(1..2)), [0..1, 2..4, 6..10]);
        assert_eq!(without(&pieces, &(0..5)), without(&pieces, &(0..4)));
        assert_eq!(without(&pieces, &(8..10)), [0..4, 6..8]);
    }

    #[test]
    fn with_another_part() {
        assert_eq!(with(&[0..2, 6..8], &(2..4)), [0..4, 6..8]);
        assert_eq!(with(&[0..2, 4..8, 12..14], &(1..5)), [0..8, 12..14]);
        assert_eq!(with(&[0..1, 7..8], &(3..5)), [0..1, 3..5, 7..8]);
    }
}
