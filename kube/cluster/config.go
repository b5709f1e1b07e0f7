package cluster

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/servers"
	"tapestry.dev/tapestry/version"
)

const (
	// serviceAccount is the directory where Kubernetes mounts a pod's token and the cluster's certificate.
	serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

	protobuf = runtime.ContentTypeProtobuf

	dialTimeout = 5 * time.Second
	// keepAlive detects a server whose machine is gone, where HTTP/2's own pings are off.
	keepAlive = 15 * time.Second
)

var unknownAnchor = regexp.MustCompile(`unknown anchor '[^']*'`)

// The decoder knows only the groups that are used here: those of a whole clientset cost ten megabytes in every agent.
var (
	scheme     = newScheme()
	codecs     = serializer.NewCodecFactory(scheme)
	parameters = runtime.NewParameterCodec(scheme)
)

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{kube.AddToScheme, metav1.AddMetaToScheme} {
		utilruntime.Must(add(s)) // fails only for a scheme that contradicts itself
	}
	metav1.AddToGroupVersion(s, corev1.SchemeGroupVersion)
	return s
}

// connection is how the API servers of one cluster are reached.
type connection struct {
	rest    *rest.RESTClient
	servers *servers.Servers
	// cluster identifies the cluster: see identity.
	cluster string
}

// connect returns the connection that o describes.
func connect(o *Options) (*connection, error) {
	c, err := restConfig(o)
	if err != nil {
		return nil, err
	}
	configured := o.Servers
	if len(configured) == 0 {
		configured = []string{c.Host}
	} else {
		c.Host = configured[0]
	}
	list, err := servers.New(configured, filepath.Join(o.State, "api-servers.json"))
	if err != nil {
		return nil, err
	}
	cluster, err := identity(c, configured)
	if err != nil {
		return nil, err
	}
	c.WrapTransport = func(rt http.RoundTripper) http.RoundTripper { return list.Wrap(rt) }
	c.Dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: keepAlive}).DialContext
	c.TLSClientConfig.ServerName = cmp.Or(o.ServerName, c.TLSClientConfig.ServerName)
	c.UserAgent = version.UserAgent()
	c.WarningHandler = rest.NoWarnings{} // warnings are for the authors of objects
	c.QPS = -1                           // no limit here: each sender limits itself
	c.ContentType = protobuf
	c.AcceptContentTypes = protobuf + ",application/json"
	c.NegotiatedSerializer = codecs.WithoutConversion()
	c.GroupVersion = &corev1.SchemeGroupVersion
	c.APIPath = "/api"
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("talk to the API server: %w", err)
	}
	return &connection{client, list, cluster}, nil
}

// identity returns a text that is the same for one cluster whatever address its API servers have, and another for
// others, without asking them. It is made of the certificates of the cluster's authority, or, for a server that the
// system's authorities vouch for, of the addresses.
func identity(c *rest.Config, configured []string) (string, error) {
	authority := c.CAData
	if len(authority) == 0 && c.CAFile != "" {
		var err error
		if authority, err = os.ReadFile(c.CAFile); err != nil {
			return "", fmt.Errorf("read the certificate of the cluster's authority: %w", err)
		}
	}
	if len(authority) == 0 {
		configured = slices.Sorted(slices.Values(configured))
		authority = []byte(strings.Join(configured, "\n"))
	}
	sum := sha256.Sum256(authority)
	return hex.EncodeToString(sum[:]), nil
}

func restConfig(o *Options) (*rest.Config, error) {
	if o.Kubeconfig != "" {
		c, err := clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
		if err != nil {
			// To YAML, an unquoted token that begins with an asterisk is an alias, and the error would quote it.
			return nil, fmt.Errorf("kubeconfig %s: %s", o.Kubeconfig, unknownAnchor.ReplaceAllString(err.Error(), "unknown anchor"))
		}
		return c, nil
	}
	dir := cmp.Or(o.Credentials, serviceAccount)
	c := &rest.Config{BearerTokenFile: filepath.Join(dir, "token")}
	c.CAFile = filepath.Join(dir, "ca.crt")
	for _, file := range []string{c.BearerTokenFile, c.CAFile} {
		if _, err := os.Stat(file); err != nil {
			return nil, fmt.Errorf("there are no credentials for the API server: %w: run as a pod with a service account, or name a kubeconfig", err)
		}
	}
	return c, nil
}
