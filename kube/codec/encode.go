package codec

import (
	"bytes"
	"encoding/json"
	"fmt"

	"tapestry.dev/tapestry/kube"
)

// Encode returns the text of a file with objs, kind by kind, sorted by namespace and name. Each object is a document
// of JSON, which is valid YAML and much faster to decode. Encode does not change objs.
func Encode(objs kube.Objects) ([]byte, error) {
	objs = objs.Clone()
	objs.Sort()
	var b bytes.Buffer
	for obj := range objs.All() {
		doc, err := marshal(obj)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", kube.RefOf(obj), err)
		}
		b.WriteString("---\n")
		b.Write(doc)
		b.WriteByte('\n')
	}
	return b.Bytes(), nil
}

// marshal returns one object as JSON with apiVersion and kind, which objects of client-go often lack.
func marshal(obj kube.Object) ([]byte, error) {
	doc, err := json.Marshal(obj)
	if err != nil || !obj.GetObjectKind().GroupVersionKind().Empty() {
		return doc, err
	}
	k := kube.KindOf(obj)
	head := fmt.Sprintf(`{"apiVersion":%q,"kind":%q,`, k.Group.Version, k.Name)
	return append([]byte(head), doc[1:]...), nil // a field always follows: metadata
}
