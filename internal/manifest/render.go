package manifest

import (
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/kustomize/kyaml/openapi"
	"sigs.k8s.io/kustomize/kyaml/yaml"
)

// Render gives what kustomize makes of a directory, many at once.
//
// Kustomize keeps Kubernetes' schema in a variable that its first run fills and that others read without a lock: it is filled here first, under one.
func Render(disk filesys.FileSystem, dir string) (resmap.ResMap, error) {
	openapi.SchemaForResourceType(yaml.TypeMeta{})
	return krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(disk, dir)
}
