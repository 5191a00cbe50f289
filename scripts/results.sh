# shellcheck shell=bash
# Sourced after lib.sh: results for machines of what runs without a VM, in the files that
# all targets write. Each thing that is checked is a test of its own.
#
#   begin_results check
#   checked "series applies" check_series
#
# The script then ends with 1 if a test failed, and with 2 if it came to no verdict: when
# it ends by itself with an error, or when a function ends with 2.
# shellcheck disable=SC2034,SC2154

begin_results() { # target
	results_target=$1
	results=$build/results/$1
	results_start=$(date -u +%Y-%m-%dT%H:%M:%SZ)
	mkdir -p "$results"
	rm -f "$results"/*.log
	: >"$results/tests.tsv"
	# An old verdict must not outlive a failure.
	write_results "it did not end" 2>/dev/null || true # no verdict yet, as its status says
	trap 'end_results $?' EXIT
}

write_results() { # why there is no verdict, or nothing
	"$top/scripts/shell_results.py" "$results_target" "$results_start" "$SECONDS" ${1:+"$1"}
}

# Runs a command as a test. Not to be called where a status is asked for: set -e would
# be off in it.
checked() { # name, command...
	local name=$1 start=$SECONDS log outcome=pass status
	shift
	say "$name"
	log=$results/$(tr -c '[:alnum:]\n' _ <<<"$name").log
	set +e
	(set -e; die_status=1; "$@") 2>&1 | tee "$log" >&2
	status=${PIPESTATUS[0]}
	set -e
	((status == 0)) || outcome=fail
	printf '%s\t%s\t%s\t%s\n' "$name" "$outcome" $((SECONDS - start)) "$log" >>"$results/tests.tsv"
	((status != 2)) || exit 2
}

end_results() { # the script's status
	local error='' status=0
	trap - EXIT
	(($1 == 0)) || error="the script ended with $1"
	write_results "$error" || status=$?
	exit "$status"
}
