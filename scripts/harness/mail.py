"""A group of patches as mails, in one mbox."""

import email
import email.header
import email.message
import email.utils
import hashlib
import re
from collections.abc import Sequence

from harness.groups import Group


def roles(listing: str) -> tuple[list[str], list[str]]:
    """What get_maintainer.pl prints, as To (maintainers) and Cc (reviewers and lists)."""
    to: list[str] = []
    cc: list[str] = []
    for line in listing.splitlines():
        address, _, role = line.partition(" (")
        (to if re.search(r"\b(maintainer|supporter):", role) else cc).append(address)
    return to or cc, cc if to else []


def encoded(addresses: Sequence[str]) -> str:
    """As the value of a header, one a line."""
    pairs = [email.utils.parseaddr(address) for address in addresses]
    return ",\n\t".join(email.utils.formataddr(pair, "utf-8") for pair in pairs)


def with_headers(file: str, headers: Sequence[tuple[str, str]]) -> str:
    """A mail as git format-patch writes it, with more headers."""
    head, _, body = file.partition("\n\n")
    lines = [f"{name}: {value}" for name, value in headers if value]
    return "\n".join([head, *lines, "", body.rstrip(), "", ""])


def cover_mail(cover: str, first: str) -> str:
    """The cover letter as a mail from who wrote the first patch, without what is not for others."""
    message = email.message_from_string(first)
    letter = email.message_from_string(cover)
    head = [
        first.partition("\n")[0],
        f"From: {message['From']}",
        f"Date: {message['Date']}",
        f"Subject: {letter['Subject']}",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=UTF-8",
        "Content-Transfer-Encoding: 8bit",
    ]
    return "\n".join(head) + f"\n\n{letter.get_payload()}"


def with_notes(patch: str, cover: str) -> str:
    """A patch that is alone has no cover letter: what that says is below its message."""
    message, line, rest = patch.partition("\n---\n")
    text = str(email.message_from_string(cover).get_payload()).partition("\n---\n")
    applies = text[2].partition("\n\n")[0]
    return f"{message}{line}{text[0].strip()}\n\n{applies}\n\n{rest}"


def mbox(group: Group, cover: str, patches: Sequence[str], to: Sequence[str], cc: Sequence[str]) -> str:
    """The mails, each but the first a reply to it."""
    if len(patches) == 1:
        mails = [with_notes(patches[0], cover)]
    else:
        mails = [cover_mail(cover, patches[0]), *patches]
    author = email.utils.parseaddr(str(email.message_from_string(patches[0])["From"]))[1]
    # The same content has the same ids.
    content = hashlib.sha256("".join([cover, *patches]).encode()).hexdigest()[:12]
    ids = [f"<{group.name}-{number}-{content}@{author.partition('@')[2]}>" for number in range(len(mails))]
    people = [("To", encoded(to)), ("Cc", encoded(cc))]
    written = []
    for own, mail in zip(ids, mails, strict=True):
        thread = [("In-Reply-To", ids[0]), ("References", ids[0])] if own != ids[0] else []
        written.append(with_headers(mail, [*people, ("Message-ID", own), *thread]))
    return "".join(written)
