// Package codec turns the text of a file into the objects of a cluster, and back. The text is the YAML that kubectl
// takes, with any number of documents in a file.
//
// # Strict
//
// Files are written by hand, so everything that would otherwise be ignored is refused: unknown fields, wrong types,
// kinds Tapestry has no use for, the same object twice. Decode reports all such mistakes of a file at once, each with
// file, line, object and field. Two decoders share the work. sigs.k8s.io/json, which the API server uses too, decides
// what is right. Only when it refuses an object, a walk over the YAML nodes along the Go type finds out what is wrong
// and in which line.
//
// # Fast
//
// Programs print one JSON object per document, or YAML in blocks. One pass over such text turns it into JSON for the
// decoder (see plain), at a tenth of the cost of a complete parser. That pass gives up at whatever is not plain or
// looks wrong, and the complete parser reads the file from its beginning. So there is one meaning of a file, and one
// text for each mistake. A fuzz test compares the two.
package codec
