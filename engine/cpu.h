// What this machine can run, and the tier in use.
#pragma once
#include <string>
#include <vector>

namespace attune {

struct Tier {
  const char* name;
  const struct KernelTable* table;
};

/// The tiers that were built and that this machine can run, lowest first.
const std::vector<Tier>& tiers();

/// The tier in use. At first ATTUNE_ISA if that is set, else the highest. Throws std::invalid_argument if ATTUNE_ISA names no runnable tier.
const Tier& tier();

/// Changes the tier to one of `tiers()`. Only on the stream's thread.
void set_tier(const Tier& tier);

/// ATTUNE_THREADS if that is set, else one for each core that this process may use. Throws std::invalid_argument.
int default_threads();

constexpr int max_threads = 1024;

/// The processor's name, and the features that matter here.
std::string cpu_name();
std::vector<std::string> cpu_features();

} // namespace attune
