#include "cpu.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "kernel_table.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace attune {

// The build script defines ATTUNE_HAS_… for each tier that the compiler knows.
namespace portable { extern const KernelTable table; }
#if defined(ATTUNE_HAS_AVX2)
namespace avx2 { extern const KernelTable table; }
#endif
#if defined(ATTUNE_HAS_AVX512)
namespace avx512 { extern const KernelTable table; }
#endif
#if defined(ATTUNE_HAS_AVX512BF16)
namespace avx512bf16 { extern const KernelTable table; }
#endif
#if defined(ATTUNE_HAS_AMX)
namespace amx { extern const KernelTable table; }
#endif

namespace {

/// CPUID features that the operating system has switched on too (XCR0, and on Linux the process's permission for AMX).
struct Features {
  bool f16c = false, avx2 = false, fma = false;
  bool avx512 = false; // F, BW, DQ, VL and CD, as all server cores since 2017 have them
  bool avx512_bf16 = false, avx512_vnni = false;
  bool amx_bf16 = false;
};

#if defined(__x86_64__)

bool bit(uint32_t word, int index) { return word >> index & 1u; }

uint64_t enabled_state() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0)); // the intrinsic would need -mxsave
  return static_cast<uint64_t>(high) << 32 | low;
}

// Linux keeps the tile registers locked until a process asks, since they make every context switch larger.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
  return false;
#endif
}

Features detect() {
  Features f;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return f; // OSXSAVE
  const bool f16c = bit(c, 29), fma = bit(c, 12);
  const uint64_t state = enabled_state();
  const auto saves = [&](uint64_t mask) { return (state & mask) == mask; };
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  if (saves(0x6)) { // XMM, YMM
    f.f16c = f16c;
    f.fma = fma;
    f.avx2 = bit(b, 5);
  }
  const bool tiles = bit(d, 24) && bit(d, 22);
  if (saves(0xE6)) { // opmask, ZMM
    f.avx512 = bit(b, 16) && bit(b, 30) && bit(b, 17) && bit(b, 31) && bit(b, 28);
    f.avx512_vnni = f.avx512 && bit(c, 11);
  }
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) f.avx512_bf16 = f.avx512 && bit(a, 5);
  f.amx_bf16 = tiles && saves(0x60000) && may_use_tiles();
  return f;
}

#else

Features detect() { return {}; }

#endif

const Features& features() {
  static const Features found = detect();
  return found;
}

std::string names_of_tiers() {
  std::string names;
  for (const Tier& t : tiers()) names += (names.empty() ? "" : ", ") + std::string(t.name);
  return names;
}

const Tier* first_tier() {
  const char* wanted = std::getenv("ATTUNE_ISA");
  if (!wanted || !*wanted) return &tiers().back();
  for (const Tier& t : tiers())
    if (std::string(wanted) == t.name) return &t;
  throw std::invalid_argument(std::string("ATTUNE_ISA is \"") + wanted + "\", but this machine can run: " + names_of_tiers() +
                              ". Unset it to let attune choose.");
}

std::atomic<const Tier*>& current_tier() {
  static std::atomic<const Tier*> current{first_tier()};
  return current;
}

#if defined(__linux__)

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// Of the logical CPUs that the process may run on, one for each physical core; all, if the system does not tell.
int allowed_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 0;
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const std::string siblings = first_line("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    cores.insert(siblings.empty() ? "cpu " + std::to_string(cpu) : siblings);
  }
  return static_cast<int>(cores.size());
}

/// CPUs' worth of time that the control group grants, or 0 for no limit. Groups nest; the tightest limit counts.
int cgroup_cpus() {
  double least = 0.0;
  const auto consider = [&](double quota, double period) {
    if (quota > 0 && period > 0 && (least == 0.0 || quota / period < least)) least = quota / period;
  };
  std::string own;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);)
    if (line.rfind("0::", 0) == 0) own = line.substr(3);
  for (std::string path = own;;) { // version 2
    std::istringstream max(first_line("/sys/fs/cgroup" + path + "/cpu.max"));
    double quota = 0, period = 0;
    if (max >> quota >> period) consider(quota, period);
    if (path.empty() || path == "/") break;
    path.erase(path.rfind('/'));
  }
  consider(std::atof(first_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").c_str()), // version 1
           std::atof(first_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us").c_str()));
  return least == 0.0 ? 0 : std::max(1, static_cast<int>(least));
}

#elif defined(__APPLE__)

int allowed_cores() {
  int cores = 0;
  size_t size = sizeof cores;
  return sysctlbyname("hw.physicalcpu", &cores, &size, nullptr, 0) == 0 ? cores : 0;
}
int cgroup_cpus() { return 0; }

#else

int allowed_cores() { return 0; }
int cgroup_cpus() { return 0; }

#endif

} // namespace

const std::vector<Tier>& tiers() {
  static const std::vector<Tier>& runnable = *new std::vector<Tier>([] { // never destroyed: the stream's thread may outlive exit()
    [[maybe_unused]] const Features& f = features();
    std::vector<Tier> list{{"portable", &portable::table}};
#if defined(ATTUNE_HAS_AVX2)
    if (f.avx2 && f.fma && f.f16c) list.push_back({"avx2", &avx2::table});
#endif
#if defined(ATTUNE_HAS_AVX512)
    if (f.avx512 && f.avx2 && f.fma && f.f16c) list.push_back({"avx512", &avx512::table});
#endif
#if defined(ATTUNE_HAS_AVX512BF16)
    if (f.avx512_bf16) list.push_back({"avx512bf16", &avx512bf16::table});
#endif
#if defined(ATTUNE_HAS_AMX)
    if (f.avx512_bf16 && f.amx_bf16) list.push_back({"amx", &amx::table});
#endif
    return list;
  }());
  return runnable;
}

const Tier& tier() { return *current_tier().load(); }

const KernelTable& kernels() { return *current_tier().load()->table; }

void set_tier(const Tier& tier) { current_tier() = &tier; }

int default_threads() {
  if (const char* wanted = std::getenv("ATTUNE_THREADS"); wanted && *wanted) {
    char* end;
    const long threads = std::strtol(wanted, &end, 10);
    if (*end || threads < 1 || threads > max_threads)
      throw std::invalid_argument(std::string("ATTUNE_THREADS is \"") + wanted + "\", expected a number from 1 to " +
                                  std::to_string(max_threads));
    return static_cast<int>(threads);
  }
  int threads = allowed_cores();
  if (threads < 1) threads = static_cast<int>(std::thread::hardware_concurrency());
  if (const int granted = cgroup_cpus()) threads = std::min(threads, granted);
  return std::clamp(threads, 1, max_threads);
}

std::string cpu_name() {
#if defined(__x86_64__)
  uint32_t words[12];
  for (uint32_t i = 0; i < 3; i++)
    if (!__get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2], &words[4 * i + 3])) return "x86-64";
  char name[sizeof words + 1] = {};
  std::memcpy(name, words, sizeof words);
  std::string trimmed(name);
  trimmed.erase(0, trimmed.find_first_not_of(' '));
  trimmed.erase(trimmed.find_last_not_of(' ') + 1);
  return trimmed;
#elif defined(__APPLE__)
  char name[128] = {};
  size_t size = sizeof name - 1;
  return sysctlbyname("machdep.cpu.brand_string", name, &size, nullptr, 0) == 0 ? name : "arm64";
#elif defined(__aarch64__)
  return "arm64";
#else
  return "unknown";
#endif
}

std::vector<std::string> cpu_features() {
  const Features& f = features();
  std::vector<std::string> names;
  const std::pair<bool, const char*> all[] = {{f.f16c, "f16c"},     {f.fma, "fma"},
                                              {f.avx2, "avx2"},     {f.avx512, "avx512"},
                                              {f.avx512_vnni, "avx512_vnni"}, {f.avx512_bf16, "avx512_bf16"},
                                              {f.amx_bf16, "amx_bf16"}};
  for (const auto& [present, name] : all)
    if (present) names.push_back(name);
#if defined(__aarch64__)
  names.push_back("neon");
#endif
  return names;
}

} // namespace attune
