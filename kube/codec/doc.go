// Package codec turns the text of a file into the objects of a cluster, and back: the same YAML that kubectl takes,
// several documents to a file.
//
// # Strict
//
// A file is written by hand, so everything in it that would be ignored is refused: unknown fields, wrong types, kinds
// Tapestry has no use for, the same object twice. Decode tells all such mistakes of a file at once, each with file,
// line, object and field. Two decoders share the work. sigs.k8s.io/json, which the API server uses, decides what is
// right. Only when it refuses, a walk over the YAML nodes along the Go type says what is wrong and in which line.
//
// # Fast
//
// What programs print, one JSON object to a document or YAML in blocks, is turned into JSON for the decoder in one pass
// over the text (see plain), which costs a tenth of what a complete parser takes. It gives up at whatever is not plain
// or looks wrong, and then the complete parser has the file from its beginning: so there is one meaning and one text
// for each mistake. A fuzz test holds the two against each other.
package codec
