package stage

import (
	"bytes"
	"context"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"

	"tapestry.dev/tapestry/version"
)

// client talks to an API server about the core group only. A whole clientset would cost every agent, which is the
// same program, ten megabytes.
type client struct {
	config *rest.Config
	rest   *rest.RESTClient
}

func newClient(kubeconfig string) (*client, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	c, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w: name a file with --kubeconfig, or run in a pod", err)
	}
	scheme := runtime.NewScheme()
	utilruntime.Must(corev1.AddToScheme(scheme)) // fails only for a scheme that contradicts itself
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c.ContentType = runtime.ContentTypeJSON
	c.AcceptContentTypes = runtime.ContentTypeJSON
	c.GroupVersion = &corev1.SchemeGroupVersion
	c.APIPath = "/api"
	c.UserAgent = version.UserAgent()
	c.QPS = -1
	client := &client{config: c}
	if client.rest, err = rest.RESTClientFor(c); err != nil {
		return nil, fmt.Errorf("talk to the API server: %w", err)
	}
	return client, nil
}

// create creates obj in the cluster, and updates obj with the result.
func (c *client) create(ctx context.Context, resource string, obj metav1.Object) error {
	body, ok := obj.(runtime.Object)
	if !ok {
		return fmt.Errorf("create %s: %T is no object", resource, obj)
	}
	if err := c.rest.Post().NamespaceIfScoped(obj.GetNamespace(), obj.GetNamespace() != "").Resource(resource).Body(body).Do(ctx).Into(body); err != nil {
		return fmt.Errorf("create %s %s%s: %w", resource, obj.GetName(), obj.GetGenerateName(), err)
	}
	return nil
}

func (c *client) list(ctx context.Context, namespace, resource, selector string, into runtime.Object) error {
	r := c.rest.Get().NamespaceIfScoped(namespace, namespace != "").Resource(resource)
	if selector != "" {
		r = r.Param("labelSelector", selector)
	}
	if err := r.Do(ctx).Into(into); err != nil {
		return fmt.Errorf("list %s: %w", resource, err)
	}
	return nil
}

// exec runs a command in the only container of a pod. A command that exits with an error is an error too; the output
// is returned in either case.
func (c *client) exec(ctx context.Context, namespace, pod string, argv []string) (stdout, stderr string, err error) {
	r := c.rest.Post().Namespace(namespace).Resource("pods").Name(pod).SubResource("exec").
		Param("stdout", "true").Param("stderr", "true")
	for _, a := range argv {
		r = r.Param("command", a)
	}
	url := r.URL()
	ws, err := remotecommand.NewWebSocketExecutor(c.config, http.MethodGet, url.String())
	if err != nil {
		return "", "", fmt.Errorf("exec in pod %s: %w", pod, err)
	}
	spdy, err := remotecommand.NewSPDYExecutor(c.config, http.MethodPost, url)
	if err != nil {
		return "", "", fmt.Errorf("exec in pod %s: %w", pod, err)
	}
	// API servers before 1.30 do not accept WebSockets for exec.
	executor, err := remotecommand.NewFallbackExecutor(ws, spdy, httpstream.IsUpgradeFailure)
	if err != nil {
		return "", "", fmt.Errorf("exec in pod %s: %w", pod, err)
	}
	var out, errOut bytes.Buffer
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut}); err != nil {
		return out.String(), errOut.String(), fmt.Errorf("exec in pod %s: %w", pod, err)
	}
	return out.String(), errOut.String(), nil
}
