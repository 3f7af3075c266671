// Reads the manifest of a bundle, as far as it says how pictures are classified.
#pragma once

#include <cstddef>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

// What the user can do something about: what happened, and what to do.
struct Problem : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A bundle for ONNX Runtime that takes the bytes of whole pictures and scores their classes.
struct Bundle {
  std::filesystem::path artifact;
  std::string input;                // (batch, height, width, 3) uint8: red, green, blue
  std::size_t batch = 0, height = 0, width = 0;
  bool independent = false;         // whether an answer leans on no other sample of its batch
  int lowest = 0, highest = 255;    // the bytes that the artifact answers as the model did
  std::string output;               // (batch, classes) float32
  std::size_t classes = 0;
  bool logits = false;              // whether a softmax makes probabilities of the output
  std::vector<std::string> labels;  // a name for each class, '' for one without; or none at all
  std::string checks;               // the output, truth values, that says whether an input may be answered; ''
  std::vector<std::string> held;    // what an input does that breaks each of them, a clause
};

// Throws Problem: the folder is no bundle, or one that takes or gives something else.
Bundle read_bundle(const std::filesystem::path& folder);
