package codec

import (
	"fmt"
	discoveryv1 "k8s.io/api/discovery/v1"
	"os"
	"strings"
	"tapestry.dev/tapestry/roll"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tapestry.dev/tapestry/kube"
)

// Every kind InFiles has an example, which is read, and read the same after Encode has written it.
func TestEveryKindIsDecoded(t *testing.T) {
	const file = "testdata/kinds.yaml"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	objs, err := Decode(file, data)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for obj := range objs.All() {
		count[kube.RefOf(obj).Kind]++
	}
	text, err := Encode(objs)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Decode("again", text)
	if err != nil {
		t.Fatal(err)
	}
	objs.Origin, again.Origin = nil, nil
	if diff := cmp.Diff(objs, again, cmp.AllowUnexported(roll.List[*discoveryv1.EndpointSlice]{}, roll.List[*kube.OtherPod]{})); diff != "" {
		t.Errorf("what was written is read as something else (-written +read):\n%s", diff)
	}
	for _, k := range kube.Kinds() {
		if k.Use&kube.InFiles != 0 && count[k.Name] != 1 {
			t.Errorf("%s has %d objects of kind %s, want one", file, count[k.Name], k.Name)
		}
	}
}

// A kind that Tapestry knows but that no file may hold gets another error than an unknown kind.
func TestEveryOtherKindIsTold(t *testing.T) {
	told := 0
	for _, k := range kube.Kinds() {
		if k.Use&kube.InFiles != 0 {
			continue
		}
		_, err := Decode("f.yaml", fmt.Appendf(nil, "# a comment\napiVersion: %s\nkind: %s\nmetadata: {name: x}\n", k.Group.Version, k.Name))
		want := "only an API server uses kind " + k.Name
		if k.Use&kube.NotServed != 0 {
			want = "kind " + k.Name + " is known and not served yet"
		}
		if err == nil || !strings.HasPrefix(err.Error(), "f.yaml:2: "+k.Name+" ") || !strings.Contains(err.Error(), "kind: "+want) {
			t.Errorf("%s: %v", k.Name, err)
		}
		told++
	}
	if told == 0 {
		t.Error("there is no such kind")
	}
}
