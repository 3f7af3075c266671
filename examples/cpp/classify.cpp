// Prints the highest classes of PNG files, by a bundle that takes the bytes of whole pictures.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "bundle.h"
#include "picture.h"
#include "session.h"

namespace {

using Json = nlohmann::ordered_json;

constexpr char kUsage[] =
    "usage: classify [--json] [--top N] [--threads N] [--kernels tokexport_native.so] BUNDLE PICTURE.png...\n";

struct Arguments {
  std::string bundle, kernels;
  std::vector<std::string> pictures;
  int top = 5, threads = 0;
  bool json = false;
};

struct Misused {};

int number(const std::string& text, int least) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least) throw Misused();
  return value;
}

Arguments parse(int count, char** words) {
  Arguments found;
  std::vector<std::string> places;
  for (int place = 1; place < count; ++place) {
    const std::string word = words[place];
    const auto value = [&] { return ++place < count ? std::string(words[place]) : throw Misused(); };
    if (word == "--json") found.json = true;
    else if (word == "--top") found.top = number(value(), 1);
    else if (word == "--threads") found.threads = number(value(), 1);
    else if (word == "--kernels") found.kernels = value();
    else if (word.rfind("--", 0) == 0) throw Misused();
    else places.push_back(word);
  }
  if (places.size() < 2) throw Misused();
  found.bundle = places[0];
  found.pictures.assign(places.begin() + 1, places.end());
  return found;
}

// Numbers become probabilities where the model gives logits.
std::vector<double> probabilities(const float* scores, const Bundle& bundle) {
  std::vector<double> found(scores, scores + bundle.classes);
  for (const double score : found) {
    if (!std::isfinite(score)) throw Problem("The artifact gives scores that are not finite.");
  }
  if (!bundle.logits) return found;
  const double highest = *std::max_element(found.begin(), found.end());
  for (double& score : found) score = std::exp(score - highest);
  const double sum = std::accumulate(found.begin(), found.end(), 0.0);
  for (double& score : found) score /= sum;
  return found;
}

// Returns the highest classes; of equal ones the lower number comes first.
Json highest(const std::vector<double>& scores, const Bundle& bundle, std::size_t top) {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto one, auto other) { return scores[one] > scores[other]; });
  Json classes = Json::array();
  for (std::size_t rank = 0; rank < std::min(top, order.size()); ++rank) {
    const double score = scores[order[rank]];
    const bool last = rank + 1 == order.size(), named = !bundle.labels.empty() && !bundle.labels[order[rank]].empty();
    classes.push_back({
        {"index", order[rank]},
        {"label", named ? Json(bundle.labels[order[rank]]) : Json()},
        {"score", score},
        {"margin", last ? Json() : Json(score - scores[order[rank + 1]])},
    });
  }
  return classes;
}

// Fills the batch from pictures [begin, end) by repeating the last one.
std::vector<std::uint8_t> batch(const Arguments& given, const Bundle& bundle, std::size_t begin, std::size_t end) {
  std::vector<std::uint8_t> pixels;
  for (std::size_t sample = 0; sample < bundle.batch; ++sample) {
    const std::string& file = given.pictures[std::min(begin + sample, end - 1)];
    const auto one = decode_png(file, bundle.height, bundle.width);
    const auto [low, high] = std::minmax_element(one.begin(), one.end());
    if (*low < bundle.lowest || *high > bundle.highest) {
      throw Problem(file + " holds bytes on which the artifact would not answer as the model does.");
    }
    pixels.insert(pixels.end(), one.begin(), one.end());
  }
  return pixels;
}

Json classify(const Arguments& given) {
  const Bundle bundle = read_bundle(given.bundle);
  if (given.pictures.size() % bundle.batch && !bundle.independent) {
    throw Problem("An answer may depend on the other pictures of its batch: pass " + std::to_string(bundle.batch) +
                  " at once, or compile with --batch 1.");
  }
  const Session session(bundle, given.kernels, given.threads);
  Json found = Json::array();
  for (std::size_t begin = 0; begin < given.pictures.size(); begin += bundle.batch) {
    const std::size_t end = std::min(begin + bundle.batch, given.pictures.size());
    auto pixels = batch(given, bundle, begin, end);
    const auto scores = session.run(pixels);
    for (std::size_t place = begin; place < end; ++place) {
      const auto row = probabilities(&scores[(place - begin) * bundle.classes], bundle);
      found.push_back({{"file", given.pictures[place]},
                       {"classes", highest(row, bundle, static_cast<std::size_t>(given.top))}});
    }
  }
  return {{"pictures", found}};
}

// Texts come from files: what would command a terminal becomes '?'.
std::string printable(std::string text) {
  for (std::size_t place = 0; place < text.size(); ++place) {
    const auto byte = static_cast<unsigned char>(text[place]);
    const auto next = place + 1 < text.size() ? static_cast<unsigned char>(text[place + 1]) : 0;
    if (byte < 0x20 || byte == 0x7f) text[place] = '?';
    if (byte == 0xc2 && next >= 0x80 && next < 0xa0) text.replace(place, 2, "?");
  }
  return text;
}

void print_table(const Json& found) {
  for (const Json& picture : found["pictures"]) {
    std::printf("%s\n", printable(picture["file"].get<std::string>()).c_str());
    for (const Json& one : picture["classes"]) {
      const std::string label = one["label"].is_null() ? "" : printable(one["label"].get<std::string>());
      std::printf("  %6.2f %%  %5zu  %s", 100 * one["score"].get<double>(), one["index"].get<std::size_t>(), label.c_str());
      if (!one["margin"].is_null()) std::printf("  (%.2f %% before the next)", 100 * one["margin"].get<double>());
      std::printf("\n");
    }
  }
}

}  // namespace

int main(int count, char** words) {
  try {
    const Arguments given = parse(count, words);
    const Json found = classify(given);
    if (given.json) std::cout << found.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
    else print_table(found);
    std::cout.flush();
    return std::cout && std::fflush(stdout) == 0 ? 0 : 1;
  } catch (const Misused&) {
    std::fputs(kUsage, stderr);
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "classify: %s\n", printable(error.what()).c_str());
    return 1;
  }
}
