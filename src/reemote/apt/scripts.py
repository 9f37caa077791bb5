"""The scripts that run on the host, for any POSIX shell.

The first argument of each is a mark that nobody can guess. It is printed on a line of its own around what we
read, and around the output of the command that the script is for.
"""

from __future__ import annotations

import re


def _one_line(*parts: str) -> str:
    """Write a script in one line, as a C shell needs it; an indented line continues the one above."""
    lines = re.sub(r"\n +", " ", "\n".join(parts)).split("\n")
    return "; ".join(line for line in lines if line)


# A user who becomes root with su keeps a PATH without the directories that dpkg insists on. What a package
# installs is for all users, whatever the umask of the one who logs in.
_BEGIN = """
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH
umask 022
need() { for each do command -v "$each" >/dev/null || {
 echo "there is no $each on this host: it is not of the Debian family" >&2
 ; exit 127; }
 ; done; }
"""

# The command writes to $files, which are gone as soon as they are open, and tail hands on what comes: it does not
# notice when the connection is lost, and goes on to its end. dpkg would be broken off by a pipe that is. A daemon
# that a package starts holds on to these files, and not to the session.
_RUN = """
run() {
 exec 3>"$files/out" 4>"$files/err" 5<"$files/out" 6<"$files/err"
 ; rm -r -- "$files"
 ; "$@" </dev/null >&3 2>&4 3>&- 4>&- 5<&- 6<&- & apt=$!
 ; tail -n +1 -f -s 0.1 --pid=$apt <&5 2>/dev/null 3>&- 4>&- 6<&- &
 tail -n +1 -f -s 0.1 --pid=$apt <&6 >&2 2>/dev/null 3>&- 4>&- 5<&- &
 wait $apt
 ; status=$?
 ; wait
 ; exec 3>&- 4>&- 5<&- 6<&-; }
"""

# Each line of $before and $after that the other does not have, with a sign.
_DIFFERENCES = r"""
differences() { {
 printf '%s\n' "$before" | sed 's/^/- /'; printf '%s\n' "$after" | sed 's/^/+ /'; } |
 LC_ALL=C sort -k 2 | LC_ALL=C uniq -u -f 1; }
"""

INSTALLED = _one_line(
    "mark=$1 format=$2; shift 2",
    _BEGIN,
    r"""
need dpkg-query dpkg
all=$(dpkg-query -W -f "$format") || exit
echo "$mark"
dpkg --print-architecture
if [ $# = 0 ]
 ; then printf '%s\n' "$all"
 ; else printf '%s\n' "$all" | grep -F "$@"
 ; fi
echo "$mark"
""",
)
"""Print the architecture of the host and a line for each package. Arguments: the format, options of grep."""

KNOWN = _one_line(
    "mark=$1; shift",
    _BEGIN,
    """
need apt-cache
echo "$mark"
for name do apt-cache pkgnames -- "$name" | grep -xF -e "$name"; done
echo "$mark"
""",
)
"""Print those names that are packages, and no virtual ones. Arguments: the names."""

CHANGE = _one_line(
    "mark=$1 format=$2 names=$3; shift 3",
    _BEGIN,
    _RUN,
    _DIFFERENCES,
    """
need dpkg-query dpkg apt-get apt-cache
for name in $names
 ; do apt-cache pkgnames --all-names -- "$name" | grep -xF -e "$name" >/dev/null || {
 echo "E: Unable to locate package $name" >&2
 ; exit 100; }
 ; done
before=$(dpkg-query -W -f "$format") || exit
files=$(mktemp -d) || exit
echo "$mark"
run "$@"
echo "$mark"
after=$(dpkg-query -W -f "$format") && {
 dpkg --print-architecture
 ; differences
 ; echo "$mark"; }
exit $status
""",
)
"""Run a command, and print what it changed. Arguments: the format, the names that must be known, the command."""

# The lists are as old as their directory. APT leaves that alone where nothing in it is new, and touches it where
# only some sources can be read; Ubuntu has a file of its own besides.
REFRESH = _one_line(
    "mark=$1 valid=$2; shift 2",
    _BEGIN,
    _RUN,
    _DIFFERENCES,
    r"""
need apt-get apt-config
eval "$(apt-config shell lists Dir::State::lists/d)"
files() { find -L "$lists" -maxdepth 1 -type f -name '*_*' -not -name '*_InRelease' -not -name '*_Release'
 -not -name '*_Release.gpg' -printf '%f %s %T@\n'; }
before=$(files)
old=$(stat -c %Y -- "$lists")
other=$(stat -c %Y -- /var/lib/apt/periodic/update-success-stamp 2>/dev/null || echo 0)
newest=$(( old > other ? old : other ))
age=$(( $(date +%s) - newest ))
if [ -n "$before" ] && [ "$age" -ge 0 ] && [ "$age" -lt "$valid" ]
 ; then for each in 1 2 3; do echo "$mark"; done; exit 0
 ; fi
files=$(mktemp -d) || exit
echo "$mark"
run "$@"
echo "$mark"
if [ $status = 0 ]; then touch -- "$lists"; else touch -d "@$old" -- "$lists" 2>/dev/null; fi
after=$(files)
differences
echo "$mark"
exit $status
""",
)
"""Run a command unless the lists of packages are fresh, and print which of them it changed.

Arguments: the seconds that they are fresh, the command.
"""
