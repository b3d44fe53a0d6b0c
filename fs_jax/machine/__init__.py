"""Disks, devices, processes and pods; nothing here knows of retrieval.

errors         whose fault an error is, and exit codes
commands       commands as a person types them
hardware       TPUs and GPUs by name: hosts, memory, peaks
sharding       meshes, and where arrays lie on them
processes      how processes of a run meet, wait and agree to stop
console        lines, tables and progress for a person
files          files that are whole or absent
manifest       folders and records that say what they hold
provenance     what kept results were made from, compared before use
compile_cache  compiled programs kept on disk, and counted
trace          profiles of a few steps
pods           what starts a training on many hosts
"""
