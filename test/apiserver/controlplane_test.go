// Package apiserver_test runs package kube/cluster against a real control plane: etcd, API server and controllers of
// Kubernetes in one process that needs no root. Nodes and pods are made up; the controllers' reactions are real.
//
// "make api-test" builds the control plane and runs the tests. Without it they are skipped.
package apiserver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/freeport"
)

// controlPlane is the control plane's process, which a test starts and stops.
type controlPlane struct {
	t    testing.TB
	dir  string
	port int
	run  *exec.Cmd
	log  bytes.Buffer

	config *rest.Config // of the administrator
	client
}

// client makes requests with the rights of one user.
type client struct{ rest *rest.RESTClient }

// program returns the path of the control plane's program. Without it the test is skipped.
func program(t testing.TB) string {
	path := os.Getenv("TAPESTRY_CONTROL_PLANE")
	if path == "" {
		t.Skip("there is no control plane: run make api-test, or name the program in TAPESTRY_CONTROL_PLANE")
	}
	return path
}

// start starts a cluster for the test alone.
func start(t testing.TB) *controlPlane {
	program(t)
	p := &controlPlane{t: t, dir: t.TempDir(), port: int(freeport.Of(t))}
	p.start()
	t.Cleanup(p.stop)
	return p
}

// start returns when the controllers work.
func (p *controlPlane) start() {
	p.t.Helper()
	began := time.Now()
	p.run = exec.Command(program(p.t), "up", "-dir", p.dir, "-port", fmt.Sprint(p.port), "-scheduler=false")
	p.run.Stdout, p.run.Stderr = &p.log, &p.log
	p.run.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.run.Start(); err != nil {
		p.t.Fatal(err)
	}
	ready := filepath.Join(p.dir, "ready")
	await.Until(p.t, "the control plane is ready", func() bool { _, err := os.Stat(ready); return err == nil })
	p.t.Logf("control plane ready after %v", time.Since(began).Round(10*time.Millisecond))
	var err error
	if p.config, err = clientcmd.BuildConfigFromFlags("", p.kubeconfig()); err != nil {
		p.t.Fatal(err)
	}
	p.config.QPS = -1
	p.config.APIPath, p.config.GroupVersion = "/api", &corev1.SchemeGroupVersion
	p.config.NegotiatedSerializer = serializer.NewCodecFactory(runtime.NewScheme()).WithoutConversion()
	if p.rest, err = rest.RESTClientFor(p.config); err != nil {
		p.t.Fatal(err)
	}
}

// as returns a client with the token in a directory.
func (p *controlPlane) as(credentials string) client {
	c := rest.AnonymousClientConfig(p.config)
	c.BearerTokenFile = filepath.Join(credentials, "token")
	r, err := rest.RESTClientFor(c)
	if err != nil {
		p.t.Fatal(err)
	}
	return client{r}
}

// stop ends the control plane like a power failure: only what is written to disk is kept.
func (p *controlPlane) stop() {
	if p.run == nil {
		return
	}
	_ = p.run.Process.Kill()
	_ = p.run.Wait()
	_ = os.Remove(filepath.Join(p.dir, "ready"))
	p.run = nil
	if p.t.Failed() {
		tail := p.log.String()
		p.t.Logf("control plane: ...%s", tail[max(0, len(tail)-3000):])
	}
}

func (p *controlPlane) kubeconfig() string { return filepath.Join(p.dir, "admin.kubeconfig") }

func (p *controlPlane) url() string { return fmt.Sprintf("https://127.0.0.1:%d", p.port) }

// call makes a request. body is sent as JSON or, if it is bytes, as an apply patch. out may be nil.
func (p client) call(verb, path string, body, out any) error {
	r := p.rest.Verb(verb).AbsPath(path)
	switch b := body.(type) {
	case nil:
	case []byte:
		r.SetHeader("Content-Type", "application/apply-patch+yaml").Param("fieldManager", "test").Param("force", "true").Body(b)
	default:
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		contentType := "application/json"
		if verb == http.MethodPatch {
			contentType = "application/merge-patch+json"
		}
		r.SetHeader("Content-Type", contentType).Body(data)
	}
	data, err := r.SetHeader("Accept", "application/json").Do(context.Background()).Raw()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", verb, path, err, data)
	}
	if out != nil {
		return json.Unmarshal(data, out)
	}
	return nil
}

func (p *controlPlane) must(verb, path string, body, out any) {
	p.t.Helper()
	if err := p.call(verb, path, body, out); err != nil {
		p.t.Fatal(err)
	}
}

// paths has the request path of each kind in Tapestry's manifests.
var paths = map[string]string{
	"ServiceAccount":                   "/api/v1/namespaces/kube-system/serviceaccounts/",
	"ClusterRole":                      "/apis/rbac.authorization.k8s.io/v1/clusterroles/",
	"ClusterRoleBinding":               "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/",
	"CustomResourceDefinition":         "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/",
	"Role":                             "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/roles/",
	"RoleBinding":                      "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/rolebindings/",
	"IngressClass":                     "/apis/networking.k8s.io/v1/ingressclasses/",
	"ValidatingAdmissionPolicy":        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/",
	"ValidatingAdmissionPolicyBinding": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/",
}

// apply applies the objects of those kinds from Tapestry's manifests.
func (p *controlPlane) apply(kinds ...string) {
	p.t.Helper()
	data, err := os.ReadFile("../../deploy/tapestry.yaml")
	if err != nil {
		p.t.Fatal(err)
	}
	applied := 0
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		for _, kind := range kinds {
			if !strings.Contains("\n"+doc, "\nkind: "+kind+"\n") {
				continue
			}
			_, name, _ := strings.Cut(doc, "\n  name: ")
			name, _, _ = strings.Cut(name, "\n")
			p.must(http.MethodPatch, paths[kind]+name, []byte(strings.TrimPrefix(doc, "---\n")), nil)
			applied++
		}
	}
	if applied < len(kinds) {
		p.t.Fatalf("of %q there are %d in our manifests", kinds, applied)
	}
}
