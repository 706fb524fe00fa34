#!/usr/bin/env bash
# The main job on the bundled model, as `make demo` runs it: every step is a command of its own.
set -euo pipefail

run=runs/demo netlist=netlists/demo
prompt="The history of the world is"
longer="$prompt the history of those who worked the land, built the towns and sailed the seas, and of"
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1  dense -> spiking: swap the attention, rate code the feed-forward blocks, calibrate"
neurtx convert gpt2-nano --out "$run" --force

say "2  what the naive conversion is worth, before any training"
neurtx eval "$run" --limit 4096

say "3  fine-tune on the dense teacher, a fraction of the recipe's steps (a few minutes)"
neurtx finetune "$run" --steps 400

say "4  spiking beside dense, on text held out from training"
neurtx eval "$run"

say "   the run that ships with the package, trained longer, on the same tokens"
neurtx eval gpt2-nano-spiking

say "5  energy, an estimate from the spikes just counted"
neurtx energy "$run"

say "6  integers, and a netlist for Loihi 2"
neurtx export "$run" --target loihi2 --out "$netlist" --force

say "7  the netlist, all of the network, in Lava against the integer model, spike for spike"
neurtx simulate "$netlist" --prompt "$longer"

say "8  text, from spikes"
neurtx generate "$run" --prompt "$prompt"

say "9  the report"
neurtx report "$run"
