// What ONNX Runtime calls when it loads the library.
#include <cstdlib>
#include <map>
#include <mutex>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

#include "operators/operators.h"
#include "ort/custom_op.h"

namespace {

using namespace tokexport;

// Where a session says how many threads it runs an operator on: its C interface has no question for
// that. runtimes/ort/runner.py sets it.
constexpr const char* kThreadsEntry = "custom_op.tokexport.threads";
constexpr long kMaxThreads = 1024;

// Returns the cores that this process may use: as many threads as a session takes by itself.
size_t usable_cores() {
#ifdef __linux__
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) == 0) return static_cast<size_t>(CPU_COUNT(&cores));
#endif
  return std::max<size_t>(std::thread::hardware_concurrency(), 1);
}

// Sets how many threads a session has: what its options say, or as many as it takes by itself.
OrtStatus* read_threads(const abi::Api* api, const OrtSessionOptions* options, size_t* threads) {
  *threads = usable_cores();
  int is_given = 0;
  if (OrtStatus* status =
          abi::HasSessionConfigEntry::of(api)(options, kThreadsEntry, &is_given))
    return status;
  if (is_given == 0) return nullptr;
  char text[16] = {};
  size_t size = sizeof text;
  if (OrtStatus* status =
          abi::GetSessionConfigEntry::of(api)(options, kThreadsEntry, text, &size))
    return status;
  char* end = nullptr;
  const long given = std::strtol(text, &end, 10);
  if (end == text || *end != '\0' || given < 1 || given > kMaxThreads)
    return abi::CreateStatus::of(api)(
        abi::kFail,
        joined_text(kThreadsEntry, " is \"", text, "\", expected 1 to ", kMaxThreads).c_str());
  *threads = static_cast<size_t>(given);
  return nullptr;
}

// Returns the operators for sessions of so many threads. They stay, as sessions keep pointers to them.
const std::vector<OrtOperator>& operators(size_t threads) {
  static std::mutex mutex;
  static std::map<size_t, std::vector<OrtOperator>> made;
  const std::lock_guard<std::mutex> lock(mutex);
  std::vector<OrtOperator>& found = made[threads];
  if (found.empty())
    for (const Operator& one : all_operators()) found.emplace_back(one, threads);
  return found;
}

OrtStatus* add_operators(OrtSessionOptions* options, const abi::Api* api) {
  size_t threads = 0;
  if (OrtStatus* status = read_threads(api, options, &threads)) return status;
  OrtCustomOpDomain* domain = nullptr;
  if (OrtStatus* status = abi::CreateCustomOpDomain::of(api)("tokexport", &domain)) return status;
  for (const OrtOperator& one : operators(threads))
    if (OrtStatus* status = abi::CustomOpDomainAdd::of(api)(domain, &one)) return status;
  return abi::AddCustomOpDomain::of(api)(options, domain);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const tokexport::abi::ApiBase* base) {
  if (const abi::Api* api = base->GetApi(abi::kVersion)) return add_operators(options, api);
  const std::string text =
      joined_text("ONNX Runtime ", base->GetVersionString(), " has no version ", abi::kVersion,
                  " of its C interface, which the kernels need");
  return abi::CreateStatus::of(base->GetApi(abi::kOldestVersion))(abi::kFail, text.c_str());
}
