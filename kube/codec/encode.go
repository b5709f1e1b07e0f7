package codec

import (
	"bytes"
	"encoding/json"
	"fmt"

	"tapestry.dev/tapestry/kube"
)

// Encode gives the text of a file with these objects, kind by kind, sorted by namespace and name: one document of
// JSON each, which is YAML too and much faster to decode. objs stay as they are.
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

// marshal writes one object as JSON with apiVersion and kind, which objects of client-go are often without.
func marshal(obj kube.Object) ([]byte, error) {
	doc, err := json.Marshal(obj)
	if err != nil || !obj.GetObjectKind().GroupVersionKind().Empty() {
		return doc, err
	}
	k := kube.KindOf(obj)
	head := fmt.Sprintf(`{"apiVersion":%q,"kind":%q,`, k.Group.Version, k.Name)
	return append([]byte(head), doc[1:]...), nil // there is always a field to follow: metadata
}
