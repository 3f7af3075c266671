#include "bundle.h"

#include <openssl/evp.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// What is wrong with a manifest.
struct Invalid : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr std::size_t kSchemaVersion = 1;
constexpr std::uintmax_t kLargestManifest = 1 << 24;
constexpr std::size_t kMostNumbers = std::size_t{1} << 31;

std::string read_text(const fs::path& path) {
  std::error_code failed;
  if (!fs::is_regular_file(path, failed)) {
    throw Problem(path.string() + " is no file: pass the folder that tokexport compile wrote.");
  }
  if (fs::file_size(path, failed) > kLargestManifest || failed) {
    throw Problem(path.string() + " is too large for a manifest.");
  }
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) throw Problem(path.string() + " cannot be read.");
  return text.str();
}

const json* given(const json& data, const char* key) {
  const auto found = data.find(key);
  return found == data.end() || found->is_null() ? nullptr : &*found;
}

std::size_t whole_number(const json& value, std::size_t least) {
  if (!value.is_number_unsigned() || value.get<std::size_t>() < least) {
    throw Invalid("a number should be a whole one of at least " + std::to_string(least) +
                  ", and it is " + value.dump(-1, ' ', true));
  }
  return value.get<std::size_t>();
}

std::vector<std::size_t> sizes(const json& spec) {
  std::vector<std::size_t> found;
  std::size_t numbers = 1;
  for (const json& size : spec.at("shape")) {
    found.push_back(whole_number(size, 1));
    if (found.back() > kMostNumbers / numbers) throw Invalid("a tensor is too large");
    numbers *= found.back();
  }
  return found;
}

std::string described(const json& specs) {
  std::string text;
  for (const json& spec : specs) {
    text += (text.empty() ? "" : "; ") + spec.at("name").get<std::string>() + " " +
            spec.at("dtype").get<std::string>() + " " + spec.at("shape").dump();
  }
  return text;
}

void read_input(const json& data, Bundle& bundle) {
  const json& inputs = data.at("inputs");
  const auto shape = inputs.size() == 1 ? sizes(inputs[0]) : std::vector<std::size_t>();
  if (shape.size() != 4 || shape[3] != 3 || inputs[0].at("dtype") != "uint8") {
    throw Problem("The artifact takes no bytes of pictures, but " + described(inputs) +
                  ": compile with --embed-preprocess HEIGHTxWIDTH.");
  }
  bundle.input = inputs[0].at("name").get<std::string>();
  bundle.batch = shape[0], bundle.height = shape[1], bundle.width = shape[2];
  const json* steps = given(data, "preprocessing");
  const bool whole = steps && given(*steps, "embedded") && !given(*steps, "resize") && !given(*steps, "crop");
  if (!whole) {
    throw Problem("The artifact leaves resizing or cropping to its caller, which this program does not do: "
                  "compile with --embed-preprocess HEIGHTxWIDTH.");
  }
  if (const json* ranges = given(data, "input_ranges"); ranges && ranges->contains(bundle.input)) {
    bundle.lowest = ranges->at(bundle.input).at(0).get<int>();
    bundle.highest = ranges->at(bundle.input).at(1).get<int>();
  }
}

void read_scores(const json& data, Bundle& bundle) {
  const json* scores = given(data, "scores");
  if (!scores) throw Problem("The model is no classifier: its manifest names no output that scores classes.");
  bundle.output = scores->at("output").get<std::string>();
  const auto form = scores->at("form").get<std::string>();
  if (form != "logits" && form != "probabilities" && form != "independent") {
    throw Invalid("scores.form is '" + form + "', which is unknown");
  }
  bundle.logits = form == "logits";
  const json& outputs = data.at("outputs");
  const auto found = std::find_if(outputs.begin(), outputs.end(),
                                  [&](const json& one) { return one.at("name") == bundle.output; });
  const auto shape = found == outputs.end() ? std::vector<std::size_t>() : sizes(*found);
  if (shape.size() != 2 || shape[0] != bundle.batch || found->at("dtype") != "float32") {
    throw Problem("The output of the scores should be float32 (pictures, classes); the artifact gives " +
                  described(outputs) + ".");
  }
  bundle.classes = shape[1];
  if (const json* labels = given(data, "labels")) {
    bundle.labels = labels->get<std::vector<std::string>>();
    if (bundle.labels.size() != bundle.classes) throw Invalid("there is another number of labels than of classes");
  }
}

// The processor's flags, as Linux lists them; none where it has no such list.
std::vector<std::string> processor_flags() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("flags", 0) != 0) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    return {std::istream_iterator<std::string>(words), {}};
  }
  return {};
}

void check_processor(const json& data) {
  const json* needs = given(data, "requires");
  const json* sets = needs ? given(*needs, "instruction_sets") : nullptr;
  const auto wanted = sets ? sets->get<std::vector<std::string>>() : std::vector<std::string>();
  const auto flags = processor_flags();
  const bool met = std::any_of(wanted.begin(), wanted.end(), [&](const std::string& one) {
    return std::find(flags.begin(), flags.end(), one) != flags.end();
  });
  if (!wanted.empty() && !flags.empty() && !met) {
    throw Problem("The artifact would answer wrongly on this processor, which has none of " + sets->dump() +
                  ": tokexport doctor BUNDLE says more.");
  }
}

std::string sha256(const fs::path& path) {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> state(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  bool works = state && EVP_DigestInit_ex(state.get(), EVP_sha256(), nullptr);
  std::ifstream file(path, std::ios::binary);
  std::vector<char> part(1 << 20);
  while (works && file) {
    file.read(part.data(), static_cast<std::streamsize>(part.size()));
    works = EVP_DigestUpdate(state.get(), part.data(), static_cast<std::size_t>(file.gcount()));
  }
  if (!works || !file.eof() || !EVP_DigestFinal_ex(state.get(), digest, &length)) {
    throw Problem(path.string() + " cannot be read.");
  }
  std::string text;
  for (unsigned place = 0; place < length; ++place) {
    for (const int digit : {digest[place] >> 4, digest[place] & 15}) text += "0123456789abcdef"[digit];
  }
  return text;
}

// Holds the artifact, and the files of weights beside it, to their hashes: what a bad copy changed, and an artifact of
// another compile, would be answered from without a word.
void check_files(const json& data, const fs::path& folder, const std::string& artifact) {
  const json& files = data.at("files");
  files.at(artifact);
  for (const auto& [name, hash] : files.items()) {
    const fs::path path = folder / name;
    if (name != artifact && path.extension() != ".data") continue;
    std::error_code failed;
    if (fs::path(name).filename() != name || !fs::is_regular_file(path, failed)) {
      throw Problem(path.string() + " is missing: copy the bundle again.");
    }
    if (hash != sha256(path)) {
      throw Problem(path.string() + " is not what compile wrote: copy the bundle again.");
    }
  }
}

Bundle read(const json& data, const fs::path& folder) {
  if (!data.is_object()) throw Invalid("it is no JSON object");
  const std::size_t version = whole_number(data.at("schema_version"), 0);
  if (version != kSchemaVersion) {
    throw Problem("The bundle has schema version " + std::to_string(version) + ", and this program reads " +
                  std::to_string(kSchemaVersion) + ".");
  }
  if (const auto target = data.at("target").get<std::string>(); target != "ort") {
    throw Problem("The bundle is for '" + target + "': compile with --target ort.");
  }
  if (data.at("status") != "PASSED") throw Problem("The bundle was never run: tokexport verify BUNDLE.");
  Bundle bundle;
  const auto name = data.at("artifact").get<std::string>();
  bundle.artifact = folder / name;
  const json* independent = given(data, "samples_independent");
  bundle.independent = independent && independent->get<bool>();
  read_input(data, bundle);
  read_scores(data, bundle);
  if (const json* checks = given(data, "checks")) {
    bundle.checks = checks->at("output").get<std::string>();
    for (const json& one : checks->at("held")) bundle.held.push_back(one.at("said").get<std::string>());
  }
  check_processor(data);
  check_files(data, folder, name);
  return bundle;
}

}  // namespace

Bundle read_bundle(const fs::path& folder) {
  const fs::path path = folder / "manifest.json";
  const std::string text = read_text(path);
  std::string why;
  try {
    return read(json::parse(text), folder);
  } catch (const json::exception& error) {
    why = error.what();
  } catch (const Invalid& error) {
    why = error.what();
  }
  throw Problem(path.string() + " is not valid: " + why + ".");
}
