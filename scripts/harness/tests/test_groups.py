import email
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

from harness import groups, mail
from harness.errors import MachineError
from harness.paths import SCRIPTS

COVER = """Subject: [RFC PATCH 0/2] mm: a title
Depends-on: 01-a 02-b
State: waits

Text.

---
Applies to v0.

old
"""
PATCH = """From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: A <a@example.org>
Date: Mon, 1 Jan 2024 00:00:00 +0000
Subject: [PATCH 1/2] mm: a subject that is
 folded

Why.

---
 file | 1 +

diff --git a/file b/file
"""


def group(name: str, *depends_on: str) -> groups.Group:
    return groups.Group(name, "PATCH", f"title of {name}", depends_on, "ready", "text")


KNOWN = {
    each.name: each for each in (group("01-a"), group("02-b"), group("03-c", "01-a"), group("04-d", "03-c"))
}


class Covers(unittest.TestCase):
    def test_what_is_below_the_line_is_replaced(self) -> None:
        parsed = groups.parse("03-c", COVER)
        self.assertEqual((parsed.prefix, parsed.title, parsed.state), ("RFC PATCH", "mm: a title", "waits"))
        self.assertEqual((parsed.depends_on, parsed.text), (("01-a", "02-b"), "Text."))
        written = parsed.cover(12, "new\n")
        self.assertIn("Subject: [RFC PATCH 00/12] mm: a title\n", written)
        self.assertTrue(written.endswith("\nText.\n\n---\nnew\n"))
        self.assertEqual(groups.parse("03-c", written), parsed)

    def test_mistakes(self) -> None:
        for old, new in (
            ("State", "Stage"),
            ("State: waits\n", ""),
            ("[RFC PATCH 0/2] ", ""),
            ("Text.\n", ""),
        ):
            with self.assertRaisesRegex(MachineError, "patches/03-c/cover-letter.txt"):
                groups.parse("03-c", COVER.replace(old, new))

    def test_folders(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "03-c"
            folder.mkdir()
            with self.assertRaisesRegex(MachineError, "write patches/03-c/cover-letter.txt"):
                groups.read(Path(name))
            (folder / groups.COVER).write_text(COVER)
            with self.assertRaisesRegex(MachineError, "depends on 01-a, which is no earlier group"):
                groups.read(Path(name))
            (folder / groups.COVER).write_text(COVER.replace(" 01-a 02-b", ""))
            self.assertEqual(list(groups.read(Path(name))), ["03-c"])


class Order(unittest.TestCase):
    def test_split(self) -> None:
        self.assertEqual(groups.split("abc", {"01-a": "b", "02-b": "c"}), {"01-a": ["a", "b"], "02-b": ["c"]})

    def test_refused(self) -> None:
        for tips, message in (
            ({"01-a": "x", "02-b": "c"}, "group/01-a is not on branch series"),
            ({"01-a": "c", "02-b": "b"}, "group/02-b has no commit of its own"),
            ({"01-a": "c", "02-b": "c"}, "group/02-b has no commit of its own"),
            ({"01-a": "b"}, "no group has c"),
            ({}, "no group has a, b, c"),
        ):
            with self.subTest(tips=tips), self.assertRaisesRegex(MachineError, message):
                groups.split("abc", tips)

    def test_folders_and_branches(self) -> None:
        groups.check_folders(["01-a"], ["01-a"])
        with self.assertRaisesRegex(MachineError, "group/02-b has no patches/02-b"):
            groups.check_folders(["01-a", "02-b"], ["01-a"])
        with self.assertRaisesRegex(MachineError, "patches/02-b has no branch"):
            groups.check_folders(["01-a"], ["01-a", "02-b"])

    def test_needed(self) -> None:
        self.assertEqual(groups.needed(KNOWN, "01-a"), [])
        self.assertEqual(groups.needed(KNOWN, "04-d"), ["01-a", "03-c"])
        with self.assertRaisesRegex(MachineError, "no group 'x', use one of: 01-a"):
            groups.needed(KNOWN, "x")


class Pages(unittest.TestCase):
    def test_generated(self) -> None:
        self.assertTrue(
            groups.generated(KNOWN, "01-a", "v0", "s\n\n", " d\n").startswith("Applies to v0.\n\ns\n\n d")
        )
        self.assertIn(
            "series:\n  title of 01-a\n  title of 03-c\n", groups.generated(KNOWN, "04-d", "v0", "", "")
        )

    def test_table(self) -> None:
        page = f"a\n{groups.BEGIN}old\n{groups.END}b\n"
        self.assertEqual(groups.with_table(page, "new\n"), f"a\n{groups.BEGIN}new\n{groups.END}b\n")
        with self.assertRaises(MachineError):
            groups.with_table("a\n", "new\n")
        self.assertIn("| 7 | title of 03-c | 01 | ready |", groups.table(KNOWN, dict.fromkeys(KNOWN, 7)))

    def test_implied_arrows_are_left_out(self) -> None:
        known = KNOWN | {"05-e": group("05-e", "01-a", "04-d")}
        picture = groups.dot(known)
        self.assertIn('"04-d" -> "05-e"', picture)
        self.assertNotIn('"01-a" -> "05-e"', picture)

    def test_subject(self) -> None:
        self.assertEqual(groups.subject(PATCH), "mm: a subject that is folded")


class Mails(unittest.TestCase):
    def messages(self, count: int) -> list[email.message.Message]:
        text = mail.mbox(group("01-a"), COVER, [PATCH] * count, ["Ä <b@example.org>"], ["list@example.org"])
        return [email.message_from_string(f"From 0000{part}") for part in text.split("From 0000")[1:]]

    def test_thread(self) -> None:
        cover, *patches = self.messages(2)
        self.assertEqual(cover["Subject"], "[RFC PATCH 0/2] mm: a title")
        self.assertIsNone(cover["State"])
        self.assertIsNone(cover["In-Reply-To"])
        self.assertTrue(str(cover.get_payload()).startswith("Text."))
        self.assertEqual(len({each["Message-ID"] for each in (cover, *patches)}), 3)
        for each in patches:
            self.assertEqual((each["In-Reply-To"], each["References"]), (cover["Message-ID"],) * 2)
            self.assertEqual(each["To"], "=?utf-8?b?w4Q=?= <b@example.org>")
            self.assertEqual(each["Cc"], "list@example.org")

    def test_a_patch_that_is_alone(self) -> None:
        (patch,) = self.messages(1)
        body = str(patch.get_payload())
        self.assertTrue(body.startswith("Why.\n\n---\nText.\n\nApplies to v0.\n\n file | 1 +\n"))
        self.assertNotIn("old", body)

    def test_roles(self) -> None:
        listing = """A <a@example.org> (maintainer:X,reviewer:Y)
B <b@example.org> (reviewer:X maintainers)
list@example.org (open list:X)
"""
        self.assertEqual(
            mail.roles(listing), (["A <a@example.org>"], ["B <b@example.org>", "list@example.org"])
        )


class Branches(unittest.TestCase):
    """series.sh, with a tree of its own."""

    def run_script(self, body: str) -> str:
        with tempfile.TemporaryDirectory() as name:
            script = f"""
                . "{SCRIPTS}/lib.sh"
                top={name} build={name} linux={name}/linux patches={name}/patches
                . "{SCRIPTS}/overlay.sh"
                . "{SCRIPTS}/series.sh"
                export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@localhost
                git init -q --initial-branch=series "$linux"
                commit() {{ git -C "$linux" commit -q --allow-empty -m "$1"; }}
                commit base; git -C "$linux" tag base
                commit 1; commit 2; commit 3
                mkdir -p "$patches"/01-a "$patches"/02-b "$patches"/03-empty
                touch "$patches"/01-a/000{{1,2}}-x.patch "$patches"/02-b/0001-x.patch
                {body}"""
            env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
            done = subprocess.run(
                ["bash", "-c", script], capture_output=True, text=True, check=False, env=env
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout

    def test_branches_are_those_of_the_folders(self) -> None:
        output = self.run_script("""
            git -C "$linux" branch group/09-old
            { patches_id; branches_of_patches "$linux"; } >"$build/state"
            set_groups "$build/state"
            git -C "$linux" for-each-ref --format='%(refname:short) %(subject)' refs/heads/
            { patches_id; branches; } | cmp - "$build/state" && echo same
        """)
        self.assertEqual(output.splitlines(), ["group/01-a 2", "group/02-b 3", "series 3", "same"])

    def test_patch_of_a_commit(self) -> None:
        output = self.run_script("""
            branches_of_patches "$linux" >"$build/state"
            set_groups "$build/state"
            patch_of series~1
            patch_of series
            commit 4
            patch_of series
        """)
        expected = ["patches/01-a/0002-*.patch", "patches/02-b/0001-*.patch", "in no group"]
        self.assertEqual(output.splitlines(), expected)

    def test_files_go_into_the_commits_that_have_them(self) -> None:
        output = self.run_script("""
            overlays=([driver]=lib/driver)
            copy=$linux/lib/driver
            mkdir -p "$copy" "$top/driver"
            add() { echo "$1" >"$copy/$1"; git -C "$linux" add .; commit "$1"; }
            add gone.rs; add a.rs
            touch "$linux/other.c"; git -C "$linux" add .; commit other
            add b.rs
            git -C "$linux" branch group/01-a series~1
            git -C "$linux" branch group/02-b series
            echo changed >"$top/driver/a.rs"
            echo new >"$top/driver/c.rs"
            cp "$copy/b.rs" "$top/driver/"
            fold_overlay driver 2>/dev/null
            git -C "$linux" log --reverse --format=%s --name-status base..series | grep '[a-z]'
            git -C "$linux" show series:lib/driver/a.rs
            git -C "$linux" log -1 --format=%s group/01-a
            git -C "$linux" rev-parse group/02-b series | uniq | wc -l
        """)
        expected = ["a.rs", "A\tlib/driver/a.rs", "other", "A\tother.c"]
        expected += ["b.rs", "A\tlib/driver/b.rs", "A\tlib/driver/c.rs", "changed", "other", "1"]
        self.assertEqual(output.splitlines(), expected)
