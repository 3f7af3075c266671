// What ONNX Runtime calls when it loads the library, and what says which kernels were chosen.
#include "kernels.h"
#include "operators.h"

namespace {

using namespace tokexport;

const std::vector<Operator>& operators() {
  static const std::vector<Operator> all = [] {
    std::vector<Operator> found;
    add_dense_operators(&found);
    add_integer_operators(&found);
    add_token_operators(&found);
    return found;
  }();
  return all;
}

OrtStatus* add_operators(OrtSessionOptions* options, const abi::Api* api) {
  OrtCustomOpDomain* domain = nullptr;
  if (OrtStatus* status = abi::CreateCustomOpDomain::of(api)("tokexport", &domain)) return status;
  for (const Operator& one : operators())
    if (OrtStatus* status = abi::CustomOpDomainAdd::of(api)(domain, &one)) return status;
  return abi::AddCustomOpDomain::of(api)(options, domain);
}

}  // namespace

#define TOKEXPORT_EXPORT extern "C" __attribute__((visibility("default")))

TOKEXPORT_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                              const tokexport::abi::ApiBase* base) {
  // A runtime too old for this interface has no table for it, and nothing to say so with either:
  // it runs the bodies of the functions.
  const abi::Api* api = base->GetApi(abi::kVersion);
  return api == nullptr ? nullptr : add_operators(options, api);
}

TOKEXPORT_EXPORT const char* tokexport_kernels() { return tokexport::kernels().name; }
