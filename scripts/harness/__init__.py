"""What the verbs in scripts/ share. The modules import downwards in this order:

paths, errors, results, kernel_log, ktap; junit, kcidb, summary; environment, vm;
target, tables; guest; hmm_tests, selftests, dax; base_record; bugs
"""
