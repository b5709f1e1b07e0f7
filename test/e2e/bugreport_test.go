package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tapestry.dev/tapestry/test/lab"
)

// What is packed for whoever is asked for help says how the node is, and no secret of it: neither its own key nor that
// of an Ingress.
func TestBugReport(t *testing.T) {
	secret, err := lab.TLSSecret("web", "a.example")
	if err != nil {
		t.Fatal(err)
	}
	c := up(t, "bug", baseYAML+secret+`---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  tls: [{hosts: [a.example], secretName: web}]
  rules: [{host: a.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: near, port: {number: 81}}}}]}}]
`)
	secrets := strings.Fields(secret[strings.Index(secret, "tls.key"):])
	keys, err := filepath.Glob(filepath.Join(c.Dir, "nodes", "node-1", "*key*"))
	if err != nil || len(keys) == 0 {
		t.Fatalf("node-1 has no key in %s: %v", c.Dir, err)
	}
	for _, name := range keys {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, strings.TrimSpace(string(b)))
	}
	got := tapestryLab(t, "bugreport", "--name", c.Name, "node-1", "--log", filepath.Join(c.Dir, "nodes", "node-1", "agent.log"), "-o", "-")
	if got.code != 0 {
		t.Fatalf("exit status %d: %s", got.code, got.stderr)
	}
	zip, err := gzip.NewReader(strings.NewReader(got.stdout))
	if err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString(h.Name + "\n")
		if _, err := io.Copy(&all, r); err != nil {
			t.Fatal(err)
		}
	}
	contains(t, all.String(), "status.txt: whole", "tables/frontends.json: whole", "flows.json: whole", "logs/1-agent.log: whole", "default/near", "the node is ready")
	looked := 0
	for _, secret := range secrets {
		if len(secret) < 20 {
			continue // words around it, and the end of a key
		}
		looked++
		if strings.Contains(all.String(), secret) {
			t.Errorf("%s is in it", secret)
		}
	}
	if looked < 3 { // two lines of the Ingress' key, and the node's
		t.Errorf("of %d secrets %d are long enough to be looked for", len(secrets), looked)
	}
}
