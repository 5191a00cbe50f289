// SPDX-License-Identifier: GPL-2.0
//! Which tests to run.

use glob::Pattern;

use crate::tests::{GROUPS, Group, Test, defects, torture};

/// A test and its group.
#[derive(Clone, Copy, Debug)]
pub struct Selected {
    /// Name of the group.
    pub group: &'static str,
    /// The test.
    pub test: &'static Test,
}

impl Selected {
    /// `group.test`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.group, self.test.name)
    }
}

/// A condition on `group.test`: a glob if it has any of `*?[`, else a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    text: String,
    pattern: Option<Pattern>,
}

impl std::str::FromStr for Filter {
    type Err = glob::PatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let pattern = if text.contains(['*', '?', '[']) { Some(Pattern::new(text)?) } else { None };
        Ok(Self { text: text.into(), pattern })
    }
}

impl Filter {
    fn matches(&self, name: &str) -> bool {
        match &self.pattern {
            Some(pattern) => pattern.matches(name),
            None => name.contains(&self.text),
        }
    }

    fn names_group(&self, group: &str) -> bool {
        self.text.strip_prefix(group).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

/// What the command line asks for; nothing means everything.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Any of these must match.
    pub filters: Vec<Filter>,
    /// Any of these groups.
    pub groups: Vec<String>,
    /// None of these may match.
    pub skip: Vec<Filter>,
}

impl Selection {
    /// The tests asked for, in the order of the tables. `defects`: also that group if
    /// nothing names it. That of torture has to be named.
    pub fn tests(&self, defects: bool) -> Vec<Selected> {
        self.choose(GROUPS, defects)
    }

    fn choose(&self, groups: &'static [Group], defects: bool) -> Vec<Selected> {
        groups
            .iter()
            .filter(|group| self.groups.is_empty() || self.groups.iter().any(|g| g == group.name))
            .filter(|group| group.name != defects::GROUP || defects || self.names(defects::GROUP))
            .filter(|group| group.name != torture::GROUP || self.names(torture::GROUP))
            .flat_map(|group| group.tests.iter().map(|test| Selected { group: group.name, test }))
            .filter(|selected| {
                let name = selected.name();
                let any = |filters: &[Filter]| filters.iter().any(|f| f.matches(&name));
                (self.filters.is_empty() || any(&self.filters)) && !any(&self.skip)
            })
            .collect()
    }

    /// Whether the group of defects is asked for by name.
    fn names(&self, group: &str) -> bool {
        self.groups.iter().any(|name| name == group)
            || self.filters.iter().any(|filter| filter.names_group(group))
    }
}

/// The test of this full name.
pub fn find(name: &str) -> Option<Selected> {
    let all = GROUPS
        .iter()
        .flat_map(|group| group.tests.iter().map(|test| Selected { group: group.name, test }));
    all.into_iter().find(|selected| selected.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: &[Test] = &[Test::new("read", |_| Ok(())), Test::new("read_write", |_| Ok(()))];
    const SOME: &[Group] =
        &[Group { name: "access", tests: NOTHING }, Group { name: defects::GROUP, tests: NOTHING }];

    fn names(filters: &[&str], groups: &[&str], defects: bool) -> Vec<String> {
        let selection = Selection {
            filters: filters.iter().map(|text| text.parse().unwrap()).collect(),
            groups: groups.iter().map(|&group| group.into()).collect(),
            skip: Vec::new(),
        };
        selection.choose(SOME, defects).iter().map(Selected::name).collect()
    }

    #[test]
    fn what_is_skipped_is_left_out() {
        let skip = ["*.read_write".parse().unwrap(), "defects".parse().unwrap()];
        let selection = Selection { skip: skip.into(), ..Selection::default() };
        let names: Vec<_> = selection.choose(SOME, true).iter().map(Selected::name).collect();
        assert_eq!(names, ["access.read"]);
    }

    #[test]
    fn part_or_glob_of_the_name() {
        assert_eq!(names(&["s.read"], &["access"], false), ["access.read", "access.read_write"]);
        assert_eq!(names(&["*.read"], &[], false), ["access.read"]);
        assert_eq!(names(&["write", "*.read"], &[], false), ["access.read", "access.read_write"]);
        assert!(names(&["nothing"], &[], true).is_empty());
        assert!("a[".parse::<Filter>().is_err());
    }

    #[test]
    fn defects_only_if_allowed_or_named() {
        assert_eq!(names(&[], &[], false).len(), 2);
        assert_eq!(names(&[], &[], true).len(), 4);
        assert_eq!(names(&[], &["defects"], false).len(), 2);
        assert_eq!(names(&["defects.read"], &[], false).len(), 2);
        assert_eq!(names(&["defects.*e"], &[], false), ["defects.read_write"]);
        assert_eq!(names(&["read"], &[], false).len(), 2);
    }

    #[test]
    fn full_names_are_unique() {
        let mut names: Vec<_> =
            Selection::default().tests(true).iter().map(Selected::name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert_eq!(find(&names[0]).unwrap().name(), names[0]);
        assert!(find("access.").is_none());
    }
}
