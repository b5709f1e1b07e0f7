package manifests

import (
	"fmt"
	discoveryv1 "k8s.io/api/discovery/v1"
	"math/rand/v2"
	"os"
	"path/filepath"
	"tapestry.dev/tapestry/roll"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tapestry.dev/tapestry/kube"
)

// However files change, look finds the same as reading the directory anew.
func TestLookFindsWhatReadDoes(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, StatusDir), 0o755); err != nil {
		t.Fatal(err)
	}
	tree := tree{dir: dir}
	if errs := tree.scan(nil); len(errs) > 0 {
		t.Fatal(errs)
	}
	random := rand.New(rand.NewPCG(1, 2))
	shared := 0 // the number of lists that a snapshot shares with the one before
	var before kube.Objects
	for step := range 400 {
		name := fmt.Sprintf("f%d.yaml", random.IntN(6))
		switch random.IntN(6) {
		case 0:
			_ = os.Remove(filepath.Join(dir, name)) // it may not exist
		case 1:
			name = fmt.Sprintf("status/n%d.yaml", random.IntN(3))
			write(t, dir, name, fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata:\n  name: n%d\n  annotations:\n    step: s%d\n", random.IntN(3), step))
		case 2:
			write(t, dir, name, node(fmt.Sprintf("n%d", random.IntN(4)))) // sometimes a Node that is defined twice
		default:
			text := ""
			for i := range random.IntN(3) {
				text += fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata:\n  name: %c%d\n---\n", 'a'+name[1]-'0', 2*i+random.IntN(2))
			}
			write(t, dir, name, text)
		}
		tree.look(map[string]bool{filepath.Join(dir, name): true})
		got, err := tree.objects()
		want, wantErr := Read(dir)
		if (err == nil) != (wantErr == nil) && tree.ready() {
			t.Fatalf("step %d: %v, Read says %v", step, err, wantErr)
		}
		if err != nil || wantErr != nil {
			continue
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmp.AllowUnexported(roll.List[*discoveryv1.EndpointSlice]{}, roll.List[*kube.OtherPod]{})); diff != "" {
			t.Fatalf("step %d, %s (-Read +look):\n%s", step, name, diff)
		}
		if len(got.Services) > 0 && len(before.Services) > 0 && &got.Services[0] == &before.Services[0] {
			shared++
		}
		before = got
	}
	if shared == 0 {
		t.Error("no snapshot shared anything with the one before")
	}
}
