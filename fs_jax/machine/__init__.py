"""Disks, devices, processes and pods; nothing here knows of retrieval.

Its files, lower ones first:

    errors         exit codes; errors told apart: the user's, memory, transient
    commands       commands as a person types them
    hardware       TPUs and GPUs by name: hosts, memory, peaks
    sharding       meshes, and how arrays are laid out on them
    processes      how the processes of a run meet, wait and agree to stop
    console        lines, tables and progress bars
    files          files that are whole or absent
    manifest       folders and records that say what they hold
    provenance     what kept results were made from, compared before use
    compile_cache  compiled programs: kept on disk and counted
    trace          profiles of a few steps
    pods           launchers for training on many hosts
"""
