// Package connect reaches the API servers of a cluster, with the credentials of a pod or of a kubeconfig.
package connect

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilnet "k8s.io/apimachinery/pkg/util/net"
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

	// Protobuf is the type of content that is asked for first.
	Protobuf = runtime.ContentTypeProtobuf

	dialTimeout = 5 * time.Second
	// keepAlive detects a server whose machine is gone, where HTTP/2's own pings are off.
	keepAlive = 15 * time.Second
)

var unknownAnchor = regexp.MustCompile(`unknown anchor '[^']*'`)

// The decoder knows only the groups that are used here: those of a whole clientset cost ten megabytes in every agent.
var (
	// Scheme knows the kinds that are held.
	Scheme = newScheme()
	// Parameters encodes the parameters of requests.
	Parameters = runtime.NewParameterCodec(Scheme)
	codecs     = serializer.NewCodecFactory(Scheme)
)

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{kube.AddToScheme, metav1.AddMetaToScheme, coordinationv1.AddToScheme} {
		utilruntime.Must(add(s)) // fails only for a scheme that contradicts itself
	}
	metav1.AddToGroupVersion(s, corev1.SchemeGroupVersion)
	return s
}

// Options say where API servers are, and who we are to them.
type Options struct {
	// Servers lists the URLs of the API servers, like "https://10.0.0.1:6443". When it is empty, the kubeconfig names
	// the server.
	Servers []string
	// ServerName is the name in the servers' certificates, "" for the address that is used.
	ServerName string
	// Kubeconfig is a file with credentials; "" uses Credentials.
	Kubeconfig string
	// Credentials is a directory with the files token and ca.crt, "" for the one that Kubernetes mounts into a pod. A
	// token that is replaced there is read again.
	Credentials string
	// State is a directory where learned addresses are kept, "" for none.
	State string
}

// Connection is how the API servers of one cluster are reached.
type Connection struct {
	Rest    *rest.RESTClient
	Servers *servers.Servers
	// Cluster is a text that is the same for one cluster whatever address its API servers have, and another for others.
	Cluster string
}

// To returns the connection that o describes. It sends nothing yet.
func To(o Options) (*Connection, error) {
	c, err := restConfig(&o)
	if err != nil {
		return nil, err
	}
	configured := o.Servers
	if len(configured) == 0 {
		configured = []string{c.Host}
	} else {
		c.Host = configured[0]
	}
	file := ""
	if o.State != "" {
		file = filepath.Join(o.State, "api-servers.json")
	}
	list, err := servers.New(configured, file)
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
	c.ContentType = Protobuf
	c.AcceptContentTypes = Protobuf + ",application/json"
	c.NegotiatedSerializer = codecs.WithoutConversion()
	c.GroupVersion = &corev1.SchemeGroupVersion
	c.APIPath = "/api"
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("talk to the API server: %w", err)
	}
	return &Connection{client, list, cluster}, nil
}

// probeTimeout limits the time that a server may take to say that it is ready.
const probeTimeout = 10 * time.Second

// Link returns a Link over the connection, which begins to look for a server when it runs.
func (c *Connection) Link(log *slog.Logger) *servers.Link {
	return servers.NewLink(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		return c.Rest.Get().AbsPath(servers.ProbePath).Do(ctx).Error()
	}, log)
}

// Close closes connections that wait for use.
func (c *Connection) Close() { utilnet.CloseIdleConnectionsFor(c.Rest.Client.Transport) }

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
